"""Plans as text, as files, as kustomize overlays."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner

from meshscrape.cli.plan import command as plan_command
from meshscrape.cli.render import command as render_command
from meshscrape.cli.render import write_directory
from meshscrape.errors import InputError
from meshscrape.istio.allow_list import parse_scrapers
from meshscrape.kube.objects import Inventory, Ref, manifest_of
from meshscrape.plan.model import PHASES, Change, Note, Plan
from meshscrape.plan.outcome import Outcome
from meshscrape.plan.render.diff import change_diff, plan_text, summary
from meshscrape.plan.render.files import plan_files, plan_stream
from meshscrape.plan.render.kustomize import kustomize_files, patch_of
from support.objects import cluster, control_plane, deployment, injected_namespace
from support.planning import planned, ref
from support.scraping_objects import plain_prometheus

ALLOW = parse_scrapers("spiffe:spiffe://cluster.local/ns/monitoring/sa/prometheus")


def shop(version: str = "1.31.0") -> Inventory:
    return cluster(control_plane(version), injected_namespace(), deployment(), plain_prometheus())


def on_disk(directory: Path, inventory: Inventory) -> str:
    path = directory / "dump.yaml"
    path.write_text(yaml.safe_dump_all([each.data for each in inventory]))
    return str(path)


def migrated() -> tuple[Inventory, Plan]:
    """A cluster on its way from legacy to native: creations, updates and deletions in one plan."""
    before = shop("1.30.0")
    legacy = planned(before).apply(before).changed(list(cluster(control_plane("1.31.0"))), ())
    return legacy, planned(legacy)


class TestDiff:
    """What people read."""

    def test_each_change_has_reason_restarts_and_diff(self) -> None:
        """A heading per phase, then who, why, what restarts, and the lines that differ."""
        text = plan_text(planned(shop()))
        assert "## 3. Listeners" in text
        assert "# update Deployment.apps default/httpbin\n#   why: opens Istio's secure metrics ports" in text
        assert "#   restarts: Deployment default/httpbin" in text
        assert '+            ENVOY_SECURE_MERGED_METRICS_PORT: "15092"' in text
        assert "# gate: hardening" in text

    def test_creations_and_deletions_read_as_such(self) -> None:
        """Against /dev/null, as git shows them."""
        data = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "x"}}
        created = Change("create", ref("ConfigMap", "x", group=""), None, data, "", (), "listeners")
        deleted = Change("delete", ref("ConfigMap", "x", group=""), data, None, "", (), "removal")
        assert change_diff(created)[0] == "--- /dev/null"
        assert change_diff(deleted)[1] == "+++ /dev/null"

    def test_what_a_cluster_adds_is_not_shown(self) -> None:
        """Status, resource versions and managed fields are no part of a difference."""
        data: dict[str, Any] = {
            "apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "x", "resourceVersion": "7"},
            "status": {"a": 1},
        }  # fmt: skip
        created = Change("create", ref("ConfigMap", "x", group=""), None, data, "", (), "listeners")
        assert not [line for line in change_diff(created) if "resourceVersion" in line or "status" in line]

    def test_the_summary_counts(self) -> None:
        """One line, as terraform ends."""
        assert summary(planned(shop(), harden=False)) == (
            "Plan: 0 to create, 3 to update, 0 to delete; restarts 2; 1 secured."
        )
        assert summary(Plan()) == "Nothing to do."

    def test_the_summary_says_what_becomes_of_every_workload(self) -> None:
        """A cluster where something is refused, held back or left alone is not one with nothing to do."""
        web, other = ref("Deployment", "web"), ref("Deployment", "other")
        refused = Plan(outcome=Outcome(refused=(str(web),)))
        assert summary(refused) == "Nothing planned; 1 refused (Deployment.apps default/web)."
        both = Plan(outcome=Outcome(unchanged=(web,), held=(other,)))
        assert summary(both) == "Nothing planned; 1 unchanged, 1 held back (Deployment.apps default/other)."
        assert summary(Plan(outcome=Outcome(left=(web,)))) != "Nothing to do."
        assert summary(Plan(outcome=Outcome(unchanged=(web, other)))) == "Nothing to do."

    def test_an_object_that_is_refused_twice_counts_once(self) -> None:
        """The count is of objects, not of reasons."""
        web = ref("Deployment", "web")
        notes = (
            Note(web, "a", "one", "x", True),
            Note(web, "b", "two", "x", True),
            Note(None, "c", "y", "x"),
        )
        assert Plan(notes=notes).refused == ("Deployment.apps default/web",)

    def test_colour_is_only_paint(self) -> None:
        """Without the escape codes it is the same text."""
        import re

        plan = planned(shop())
        painted = plan_text(plan, colour=True)
        assert painted != plan_text(plan)
        assert re.sub("\x1b\\[[0-9]*m", "", painted) == plan_text(plan)


class TestFiles:
    """Plain YAML for GitOps."""

    def test_a_directory_per_phase_in_order(self) -> None:
        """Applied one after the other they give what the plan says."""
        before, plan = migrated()
        files = plan_files(plan)
        directories = sorted({name.partition("/")[0] for name in files if name[0].isdigit()})
        assert directories[0].startswith("3-listeners")
        assert directories[-1].startswith("6-removal")
        phases = {name: text for name, text in files.items() if name[0].isdigit()}
        latest = self.objects(text for name, text in phases.items() if "/delete/" not in name)
        removed = self.objects(text for name, text in phases.items() if "/delete/" in name)
        after = {each.ref: each.data for each in plan.apply(before)}
        assert all(after[each] == data for each, data in latest.items())
        assert removed
        assert not set(removed) & set(after)

    @pytest.mark.parametrize("mode", ["auto", "bootstrap"])
    def test_the_originals_lead_back(self, mode: Any) -> None:
        """What was changed or removed is there as it was; what is new is named for deletion."""
        before, _ = migrated()
        plan = planned(before, mode=mode)
        files = plan_files(plan)
        kept = self.objects(
            text for name, text in files.items() if name.startswith("originals/") and "/delete/" not in name
        )
        created = self.objects(text for name, text in files.items() if name.startswith("originals/delete/"))
        state = {each.ref: each.data for each in plan.apply(before)}
        assert bool(created) is (mode == "bootstrap")
        back = {ref: data for ref, data in (state | kept).items() if ref not in created}
        assert back == {each.ref: each.data for each in before}

    def objects(self, texts: Iterable[str]) -> dict[Ref, Any]:
        """The objects of these files."""
        data = [yaml.safe_load(text) for text in texts]
        return {manifest_of(each).ref: each for each in data}

    def test_the_same_plan_gives_the_same_bytes(self) -> None:
        """Whatever the order in which the objects were read."""
        objects = list(shop())
        one, other = Inventory(objects), Inventory(reversed(objects))
        assert plan_files(planned(one)) == plan_files(planned(other))
        assert plan_stream(planned(one), "scrape") == plan_stream(planned(other), "scrape")

    def test_the_stream_is_valid_yaml(self) -> None:
        """Each document is an object of the phase; what is to be deleted is only named."""
        _, plan = migrated()
        for phase in PHASES:
            documents = [each for each in yaml.safe_load_all(plan_stream(plan, phase)) if each]
            changes = [change for change in plan.changes if change.phase == phase]
            assert len(documents) == sum(change.after is not None for change in changes)
        removed = plan_stream(plan, "removal")
        assert "# delete Sidecar.networking.istio.io default/meshscrape-httpbin" in removed

    def test_the_overview_is_the_plan(self) -> None:
        """PLAN.txt says the same as `plan`, gates included."""
        plan = planned(shop())
        assert plan_text(plan) in plan_files(plan)["PLAN.txt"]

    @pytest.mark.parametrize(
        ("applied", "kept"),
        [(None, False), ('{"spec": {}}', False), ('{"spec": {"replicas": 2}}', True), ("{", True)],
    )
    def test_replicas_of_an_autoscaler_are_left_out(self, applied: str | None, kept: bool) -> None:
        """Files do not set back what it scaled; but a field that kubectl applied before would become 1."""
        workload = deployment()
        workload["spec"]["replicas"] = 7
        if applied:
            last = "kubectl.kubernetes.io/last-applied-configuration"
            workload["metadata"]["annotations"] = {last: applied}
        scaler = {
            "apiVersion": "autoscaling/v2", "kind": "HorizontalPodAutoscaler",
            "metadata": {"name": "any", "namespace": "default"},
            "spec": {"scaleTargetRef": {"apiVersion": "apps/v1", "kind": "Deployment", "name": "httpbin"}},
        }  # fmt: skip
        objects = (control_plane(), injected_namespace(), workload, plain_prometheus())
        plan = planned(cluster(*objects, scaler))
        files = plan_files(plan)
        spec = yaml.safe_load(files["3-listeners/default_deployment.apps_httpbin.yaml"])["spec"]
        assert ("replicas" in spec) is kept
        assert ("replicas: 7" in plan_stream(plan, "listeners")) is kept
        # `kubectl replace` makes the whole object anew.
        original = yaml.safe_load(files["originals/default_deployment.apps_httpbin.yaml"])
        assert original["spec"]["replicas"] == 7
        unscaled = plan_files(planned(cluster(*objects)))["3-listeners/default_deployment.apps_httpbin.yaml"]
        assert yaml.safe_load(unscaled)["spec"]["replicas"] == 7

    def test_what_a_cluster_adds_stays_out_of_the_files(self) -> None:
        """Kubernetes numbers revisions itself; `originals/` keeps what kubectl needs for a later apply."""
        last, revision = (
            "kubectl.kubernetes.io/last-applied-configuration",
            "deployment.kubernetes.io/revision",
        )
        workload = deployment()
        workload["metadata"]["annotations"] = {last: "{}", revision: "3"}
        objects = cluster(control_plane(), injected_namespace(), workload, plain_prometheus())
        files = plan_files(planned(objects))
        applied = yaml.safe_load(files["3-listeners/default_deployment.apps_httpbin.yaml"])
        assert not {last, revision} & set(applied["metadata"].get("annotations", {}))
        original = yaml.safe_load(files["originals/default_deployment.apps_httpbin.yaml"])
        assert original["metadata"]["annotations"] == {last: "{}"}

    def test_asm_has_two_trees(self) -> None:
        """Trap 14: Istio's objects go to ASM's own API server, the rest to the cluster."""
        _, plan = migrated()
        apart = Plan(plan.changes, apart=True)
        tops = {name.partition("/")[0] for name in plan_files(apart) if "/" in name}
        assert tops == {"asm-control-plane", "cluster"}


def merged(base: Any, patch: Any) -> Any:
    """Strategic merge as kustomize does it for Kubernetes' own kinds (lists by name or mountPath)."""
    if not isinstance(patch, Mapping) or not isinstance(base, Mapping):
        return patch
    result = dict(base)
    for key, value in patch.items():
        if value is None:
            result.pop(key, None)
        elif key in ("containers", "initContainers", "env", "volumes", "volumeMounts") and key in base:
            result[key] = merged_list(base[key], value, "mountPath" if key == "volumeMounts" else "name")
        else:
            result[key] = merged(base.get(key), value) if key in base else value
    return result


def merged_list(base: list[Any], patch: list[Any], key: str) -> list[Any]:
    gone = {each[key] for each in patch if each.get("$patch") == "delete"}
    items = {each[key]: each for each in base if each[key] not in gone}
    for each in patch:
        if "$patch" not in each:
            items[each[key]] = merged(items.get(each[key], {}), each)
    return list(items.values())


class TestKustomize:
    """Overlays with patches."""

    def overlays(self, files: Mapping[str, str]) -> list[str]:
        return sorted(name.rpartition("/")[0] for name in files if name.endswith("kustomization.yaml"))

    def test_each_overlay_is_upon_the_one_before(self) -> None:
        """The first one is upon the user's base."""
        _, plan = migrated()
        files = kustomize_files(plan, "../../mine")
        previous = "../../mine"
        for directory in self.overlays(files):
            document = yaml.safe_load(files[f"{directory}/kustomization.yaml"])
            assert document["resources"][0] == previous
            named = [*document["resources"][1:], *(each["path"] for each in document.get("patches", ()))]
            assert {f"{directory}/{name}" for name in named} == {
                name for name in files if name.startswith(f"{directory}/") and "kustomization" not in name
            }
            previous = f"../{directory}"

    @pytest.mark.parametrize("mode", ["auto", "bootstrap"])
    def test_the_patches_give_the_planned_objects(self, mode: Any) -> None:
        """Merged upon the base, overlay after overlay, they are what the plan leaves."""
        before, _ = migrated()
        plan = planned(before, mode=mode)
        files = kustomize_files(plan, "../../base")
        state = {each.ref: dict(each.data) for each in before}
        for directory in self.overlays(files):
            document = yaml.safe_load(files[f"{directory}/kustomization.yaml"])
            for name in document["resources"][1:]:
                made = manifest_of(yaml.safe_load(files[f"{directory}/{name}"]))
                state[made.ref] = dict(made.data)
            for each in document.get("patches", ()):
                patch = yaml.safe_load(files[f"{directory}/{each['path']}"])
                target = manifest_of(patch).ref
                if patch.get("$patch") == "delete":
                    del state[target]
                else:
                    state[target] = merged(state[target], patch)
        assert state == {each.ref: each.data for each in plan.apply(before)}

    def test_a_list_item_that_goes_is_deleted_by_its_name(self) -> None:
        """Kustomize merges lists of Kubernetes' own kinds by name: leaving an item out would keep it."""
        before = deployment(volumes=[{"name": "kept", "emptyDir": {}}, {"name": "gone", "emptyDir": {}}])
        after = deployment(volumes=[{"name": "kept", "emptyDir": {}}])
        patch = patch_of(before, after)
        assert patch["spec"]["template"]["spec"] == {"volumes": [{"$patch": "delete", "name": "gone"}]}
        assert merged(before, patch) == after

    def test_patches_hold_the_difference_alone(self) -> None:
        """The base stays the user's: a container that does not change is not in the patch."""
        files = kustomize_files(planned(shop(), harden=False), "base")
        patch = yaml.safe_load(files["3-listeners/default_deployment.apps_httpbin.yaml"])
        assert set(patch["spec"]["template"]) == {"metadata"}


def main_exit_code(*arguments: str) -> int:
    """The exit code of the whole program."""
    return subprocess.run(
        [sys.executable, "-m", "meshscrape", *arguments], capture_output=True, check=False
    ).returncode


class TestCommands:
    """`plan` and `render` on files."""

    def run(self, command: Any, *arguments: str) -> Any:
        return CliRunner().invoke(command, list(arguments), standalone_mode=False)

    def test_exit_codes(self, tmp_path: Path) -> None:
        """0 nothing to do, 1 changes pending, 2 error; like terraform with --detailed-exitcode."""
        inventory = shop()
        dump = on_disk(tmp_path, inventory)
        assert self.run(plan_command, "-f", dump).return_value == 1
        assert self.run(plan_command, "-f", dump, "--detailed-exitcode").return_value == 2
        done = on_disk(tmp_path, planned(inventory).apply(inventory))
        for more in ([], ["--detailed-exitcode"]):
            assert self.run(plan_command, "-f", done, *more).return_value == 0
        for wrong in (
            ["-f", "/nowhere.yaml"],
            ["-f", dump, "--mode", "guess"],
            ["-f", dump, "--scraper", "x"],
        ):
            assert self.run(plan_command, *wrong, "--detailed-exitcode").return_value == 1
            assert main_exit_code("plan", *wrong) == 2

    def test_one_stream_is_of_one_phase(self, tmp_path: Path) -> None:
        """All phases in one stream would be applied in one go, past the gates."""
        dump = on_disk(tmp_path, shop())
        assert main_exit_code("render", "-f", dump) == 2
        assert main_exit_code("render", "-f", dump, "--out", str(tmp_path / "o"), "--phase", "scrape") == 2
        printed = self.run(render_command, "-f", dump, "--phase", "listeners")
        kinds = {each["kind"] for each in yaml.safe_load_all(printed.stdout)}
        assert kinds == {"Deployment"}

    def test_json(self, tmp_path: Path) -> None:
        """The whole plan for programs, objects before and after included."""
        result = self.run(plan_command, "-f", on_disk(tmp_path, shop()), "-o", "json")
        document = json.loads(result.stdout)
        assert {each["phase"] for each in document["changes"]} == {
            "credentials",
            "listeners",
            "scrape",
            "hardening",
        }
        assert document["changes"][0]["before"] != document["changes"][0]["after"]
        assert document["gates"][0]["planned"] is True
        assert document["refused"] == 0

    def test_refusals_alone_can_be_told_from_a_finished_cluster(self, tmp_path: Path) -> None:
        """By the exit code, by the count in JSON, and by the line on standard error."""
        dump = on_disk(tmp_path, cluster(injected_namespace(), deployment()))
        result = self.run(plan_command, "-f", dump, "-o", "json")
        assert result.return_value == 1
        assert json.loads(result.stdout)["refused"] == 1
        assert result.stderr == "meshscrape: Nothing planned; 1 refused (Deployment.apps default/httpbin).\n"
        done = on_disk(tmp_path, planned(shop()).apply(shop()))
        finished = self.run(plan_command, "-f", done, "-o", "json")
        assert json.loads(finished.stdout)["refused"] == 0
        assert finished.stderr == "meshscrape: Nothing to do.\n"

    def test_standard_input_and_directories(self, tmp_path: Path) -> None:
        """`-` and a directory give the same plan as the file."""
        (tmp_path / "deep").mkdir()
        dump = on_disk(tmp_path / "deep", shop())
        of_file = self.run(plan_command, "-f", dump).stdout
        of_directory = self.run(plan_command, "-f", str(tmp_path)).stdout
        of_input = CliRunner().invoke(
            plan_command, ["-f", "-"], input=Path(dump).read_text(), standalone_mode=False
        )
        assert of_file == of_directory == of_input.stdout
        assert "Plan: " in of_file

    def test_no_colour_into_a_pipe(self, tmp_path: Path) -> None:
        """Escape codes are for terminals."""
        assert "\x1b" not in self.run(plan_command, "-f", on_disk(tmp_path, shop())).stdout

    @pytest.mark.parametrize("kustomize", [[], ["--kustomize"]])
    def test_rendering_twice_gives_the_same_files(self, tmp_path: Path, kustomize: list[str]) -> None:
        """An earlier rendering is replaced as a whole."""
        dump, out = on_disk(tmp_path, shop()), tmp_path / "out"
        trees = []
        for _ in range(2):
            result = self.run(render_command, "-f", dump, "--out", str(out), *kustomize)
            assert result.return_value == 0
            trees.append(
                {str(path.relative_to(out)): path.read_text() for path in out.rglob("*") if path.is_file()}
            )
        assert trees[0] == trees[1]
        assert len(trees[0]) > 3
        assert sorted(path.name for path in tmp_path.iterdir()) == ["dump.yaml", "out"]

    def test_foreign_directories_are_not_touched(self, tmp_path: Path) -> None:
        """A directory that holds anything else is refused, and stays."""
        (tmp_path / "mine").mkdir()
        (tmp_path / "mine" / "note").write_text("mine")
        with pytest.raises(InputError, match="did not write"):
            write_directory(tmp_path / "mine", {"PLAN.txt": "x"})
        assert (tmp_path / "mine" / "note").read_text() == "mine"
        with pytest.raises(InputError, match="is not a directory"):
            write_directory(tmp_path / "mine" / "note", {"PLAN.txt": "x"})

    def test_a_failed_rendering_leaves_the_old_one(self, tmp_path: Path) -> None:
        """Never half-written: a name that cannot be written leaves everything as it was."""
        out = tmp_path / "out"
        files = plan_files(planned(shop()))
        write_directory(out, files)
        with pytest.raises(InputError, match="cannot be written"):
            write_directory(out, files | {"z" * 300: "x"})
        assert {str(path.relative_to(out)) for path in out.rglob("*") if path.is_file()} == set(files)

    def test_the_stream_goes_to_standard_output(self, tmp_path: Path) -> None:
        """With --phase: one YAML stream, notes on standard error."""
        result = self.run(render_command, "-f", on_disk(tmp_path, shop()), "--phase", "scrape")
        assert list(yaml.safe_load_all(result.stdout))
