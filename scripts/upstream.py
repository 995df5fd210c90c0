"""Fill `.cache/upstream` with the upstream data that tests read, from Go modules.

The versions are those of the conformance suite's tools: their go.mod names them and their go.sum proves them.
Exit status 2 and one line when Go is missing or a module cannot be read.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[1]
TOOLS = ROOT / "tests/conformance/tools"
TARGET = ROOT / ".cache/upstream"
ISTIO = "istio.io/istio"
OPERATOR = "github.com/prometheus-operator/prometheus-operator"
INJECTED = "pkg/kube/inject/testdata/inject"

# Where a file or directory lies in its module, and the name that tests know it by.
FILES = {
    ISTIO: {
        "manifests/charts/base/files/crd-all.gen.yaml": "crds/istio.yaml",
        "tests/integration/pilot/testdata/gateway-api-crd.yaml": "crds/gateway-api.yaml",
        "samples/addons/extras/prometheus-secure-metrics.yaml": "samples/prometheus-secure-metrics.yaml",
        "samples/bookinfo/gateway-api/bookinfo-gateway.yaml": "samples/bookinfo-gateway.yaml",
        "samples/bookinfo/platform/kube/bookinfo.yaml": "samples/bookinfo.yaml",
        "samples/httpbin/gateway-api/httpbin-gateway.yaml": "samples/httpbin-gateway.yaml",
        "samples/httpbin/httpbin.yaml": "samples/httpbin.yaml",
        f"{INJECTED}/gateway.yaml.injected": "samples/injected/gateway.yaml",
        f"{INJECTED}/hello.yaml.injected": "samples/injected/hello.yaml",
        f"{INJECTED}/native-sidecar.yaml.injected": "samples/injected/native-sidecar.yaml",
        f"{INJECTED}/prometheus-scrape.yaml.injected": "samples/injected/prometheus-scrape.yaml",
        f"{INJECTED}/user-volume.yaml.injected": "samples/injected/user-volume.yaml",
    },
    OPERATOR: {"example/prometheus-operator-crd": "crds/prometheus-operator"},
}


def module_directory(tools: Path, module: str) -> tuple[Path, str]:
    """Return the directory and version of a module that a tools module requires; download it if need be."""
    done = subprocess.run(
        ["go", "mod", "download", "-json", module], cwd=tools, capture_output=True, text=True, check=False
    )
    if done.returncode != 0:
        lines = (done.stderr or done.stdout).strip().splitlines()
        raise SystemExit(f"upstream: go cannot read {module}: {lines[-1] if lines else 'no output'}")
    answer = json.loads(done.stdout)
    return Path(answer["Dir"]), answer["Version"]


def copy(source: Path, target: Path) -> None:
    """Copy a file, or the files of a directory, without the read-only modes of the module cache."""
    if source.is_dir():
        for path in source.iterdir():
            copy(path, target / path.name)
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(source, target)


def fill(target: Path) -> list[str]:
    """Copy every file into `target`; return the versions that they are of."""
    versions = []
    for name, (tools, module) in {"istio": ("istio", ISTIO), "operator": ("operator", OPERATOR)}.items():
        print(f"upstream: {name} …", file=sys.stderr, flush=True)
        source, version = module_directory(TOOLS / tools, module)
        versions.append(f"{module} {version}")
        for inside, outside in FILES[module].items():
            copy(source / inside, target / outside)
    return versions


def main() -> int:
    """Fill a new directory beside the old one and put it in the old one's place."""
    if shutil.which("go") is None:
        print("upstream: go is not on PATH; install Go 1.26 or later", file=sys.stderr)
        return 2
    TARGET.parent.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(dir=TARGET.parent) as scratch:
        fresh = Path(scratch) / "upstream"
        versions = fill(fresh)
        (fresh / "VERSIONS").write_text("".join(f"{line}\n" for line in versions))
        shutil.rmtree(TARGET, ignore_errors=True)
        fresh.rename(TARGET)
    print(f"upstream: {TARGET.relative_to(ROOT)} holds {', '.join(versions)}", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
