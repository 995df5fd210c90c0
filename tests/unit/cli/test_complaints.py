"""What the command line says about a wrong command line: one line with place, problem and remedy."""

from __future__ import annotations

from pathlib import Path

import pytest

from meshscrape.cli import main as entry
from meshscrape.cli.image_reference import check_image
from meshscrape.errors import InputError


def complaint(
    words: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], code: int = 2
) -> str:
    """Return the one line that `meshscrape WORDS` writes, without its prefix and its end."""
    monkeypatch.setattr("sys.argv", ["meshscrape", *words])
    with pytest.raises(SystemExit) as ended:
        entry.main()
    out, err = capsys.readouterr()
    assert (ended.value.code, out) == (code, ""), err
    assert err.startswith("meshscrape: ")
    assert err.endswith("\n")
    assert err.count("\n") == 1
    return err.removeprefix("meshscrape: ").rstrip("\n")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("nonsense", "there is no verb 'nonsense'; see `meshscrape --help`"),
        ("verfy", "there is no verb 'verfy'; did you mean verify?"),
        ("ca ini", "there is no verb 'ini'; did you mean init?"),
        ("--nonsense", "--nonsense: there is no such option; see `meshscrape --help`"),
        ("plan -Q", "-Q: there is no such option; see `meshscrape plan --help`"),
        ("plan --sleector x", "--sleector: there is no such option; did you mean --selector?"),
        ("plan --mode", "--mode: it needs a value; write --mode VALUE"),
        ("plan --new-job=3", "--new-job: it takes no value; write --new-job"),
        ("plan --mode nativ", "--mode: 'nativ' is not one of its values; did you mean native?"),
        (
            "plan -o xml",
            "--output: 'xml' is not one of its values; choose from diff, json, yaml, sarif, junit",
        ),
        ("completion", "SHELL: it is missing; choose from bash, zsh, fish"),
        (
            "completion powershell",
            "SHELL: 'powershell' is not one of its values; choose from bash, zsh, fish",
        ),
        ("curl", "URL: it is missing; see `meshscrape curl --help`"),
        ("curl http://web", "--as: it is missing; give --as NS/SA"),
        (
            "plan --merged-port 0",
            "--merged-port: 0 is not a whole number from 1 to 65535; see `meshscrape plan --help`",
        ),
        (
            "apply --max-head-series x",
            "--max-head-series: 'x' is not a whole number of at least 1; see `meshscrape apply --help`",
        ),
        (
            "apply --timeout x",
            "--timeout: 'x' is not a number from 1 to 86400; see `meshscrape apply --help`",
        ),
        ("plan --reads /nowhere", "--reads: file '/nowhere' does not exist; correct the path"),
        ("explain a b", "got unexpected extra argument (b); see `meshscrape explain --help`"),
    ],
)
def test_usage_error_is_one_line_with_a_remedy(
    words: str, said: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Near names are suggested; where there are none, the line names the choices or the help."""
    assert complaint(words.split(), monkeypatch, capsys) == said


def test_usage_error_exits_with_1_where_2_means_changes(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """With --detailed-exitcode the exit code 2 is for pending changes."""
    said = complaint(["plan", "--detailed-exitcode", "--mode", "nativ"], monkeypatch, capsys, code=1)
    assert said == "--mode: 'nativ' is not one of its values; did you mean native?"


@pytest.mark.parametrize("name", ["a\nb", "a\x1b[31mb", "a\u2028b"])
def test_input_cannot_break_or_colour_the_line(
    name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A line break or an escape sequence in a name is shown as an escape."""
    for words in (["observe", name], ["plan", f"--{name}"], [name], ["plan", "--mode", name]):
        said = complaint(words, monkeypatch, capsys)
        assert said.isprintable()


@pytest.mark.parametrize("words", ["", "ca", "agent"])
def test_command_without_a_verb_shows_the_help(
    words: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The help is on standard error, and the exit code says that nothing ran."""
    monkeypatch.setattr("sys.argv", ["meshscrape", *words.split()])
    with pytest.raises(SystemExit) as ended:
        entry.main()
    out, err = capsys.readouterr()
    assert (ended.value.code, out) == (2, "")
    assert err.startswith("Usage: meshscrape")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (
            "plan --example --proxy-image m:1",
            "--proxy-image: it has no effect, because no scrape proxy is planned; "
            "add --scrape-proxy, or omit --proxy-image",
        ),
        (
            "plan --example --proxy-certificates /etc/certs --no-scrape-proxy",
            "--proxy-certificates: it has no effect, because no scrape proxy is planned; "
            "omit --proxy-certificates, or --no-scrape-proxy",
        ),
        ("verify --timeout 60", "--timeout: needs --image; add --image REF, or omit --timeout"),
        (
            "verify --kubernetes --state x",
            "--state: it names another mesh than --kubernetes; omit one of them",
        ),
        (
            "prometheus-config --discovery 127.0.0.1:1",
            "--discovery: needs --proxy; add --proxy IP:PORT, or omit --discovery",
        ),
        (
            "prometheus-config --proxy nonsense --token-file token",
            "--proxy: 'nonsense' is not HOST:PORT; write 127.0.0.1:15094",
        ),
        (
            "verify --skip no-certificat",
            "--skip: 'no-certificat' is not a check; "
            "did you mean no-certificate or server-certificate or expired-certificate?",
        ),
        ("ca rotate --dir ca --state s", "--state and --dir both name a CA; omit one of them"),
    ],
)
def test_option_without_effect_is_refused(
    words: str, said: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """An option is never ignored in silence; the line names it and what to add or omit."""
    assert complaint(words.split(), monkeypatch, capsys) == said


@pytest.mark.parametrize(
    ("words", "option"),
    [
        ("verify --watch --interval 0s", "--interval: "),
        ("verify --kubernetes --watch -o junit", "-o: "),
        ("verify --only nonsense", "--only: "),
        ("curl ftp://web --as a/b", "ftp://web: "),
        ("curl http://web --as a/b -H nonsense", "-H: "),
        ("ca rotate --timeout soon", "--timeout: "),
    ],
)
def test_wrong_option_is_named_before_a_missing_mesh(
    words: str,
    option: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The user corrects the command line first; only then a mesh or a cluster is looked for."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "missing"))
    assert complaint(words.split(), monkeypatch, capsys).startswith(option)


def test_watch_of_a_mesh_that_is_not_there_ends_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """It would wait for ever."""
    said = complaint(["verify", "--watch", "--state", str(tmp_path)], monkeypatch, capsys)
    assert said == (
        f"{tmp_path}: no mesh is running; "
        "start one with `meshscrape up`, or name its directory with --state DIR"
    )


@pytest.mark.parametrize(
    "words",
    [
        "plan --example --assume-unread",
        "plan --example --reads",
        "prometheus-config --kubernetes --proxy 127.0.0.1:1 --token-file /token --existing",
    ],
)
def test_binary_file_of_an_option_is_refused(
    words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """It is an error of the input, not of meshscrape."""
    file = tmp_path / "binary"
    file.write_bytes(b"\xff\xfe\x00")
    *before, option = words.split()
    said = complaint([*before, option, str(file)], monkeypatch, capsys)
    assert said == f"{option}: {file}: not UTF-8 text; name another file"


@pytest.mark.parametrize(
    ("words", "option"),
    [
        ("rules --label nonsense", "--label"),
        ("proxy --credentials .. --targets t --share-with nonsense", "--share-with"),
        ("proxy --credentials A_B=/x --targets t", "--credentials"),
        ("proxy --credentials .. --targets t --trust-domain-alias A_B", "--trust-domain-alias"),
        ("proxy --credentials .. --follow 127.0.0.1:1 --follow-id nonsense", "--follow-id"),
    ],
)
def test_wrong_value_names_its_option(
    words: str, option: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A command line of many options needs the name of the wrong one."""
    assert complaint(words.split(), monkeypatch, capsys).startswith(f"{option}: ")


def test_explain_without_a_cluster_does_not_ask_for_manifests(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """TARGET is no file, so a file or --example is no remedy."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("KUBECONFIG", raising=False)
    said = complaint(["explain", "shop/web", "--kubernetes"], monkeypatch, capsys)
    assert said.endswith("no kubeconfig found; give --kubeconfig FILE, or run inside a pod")


@pytest.mark.parametrize("watch", [(), ("--watch",)], ids=["once", "watch"])
@pytest.mark.parametrize("text", ["kind: Mesh\n", "{}", '{"kind": "Plan"}'])
def test_manifest_given_as_a_running_mesh_is_refused(
    text: str,
    watch: tuple[str, ...],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The remedy is to start that mesh, not to remove its file."""
    file = tmp_path / "mesh.yaml"
    file.write_text(text)
    said = complaint(["verify", "--mesh", str(file), *watch], monkeypatch, capsys)
    assert said == (
        f"{file}: is not a status document; give what `meshscrape status -o json` prints; "
        "a mesh that a manifest declares must run first: `meshscrape up MANIFEST`"
    )


@pytest.mark.parametrize(
    "image",
    [
        "meshscrape", "meshscrape:1", "example.com/team/meshscrape:v1.2", "localhost:5000/m",
        "[::1]:5000/m:1", "a__b/c--d.e_f", "m@sha256:" + "0" * 64, "m:1@sha256:" + "0" * 64,
    ],
)  # fmt: skip
def test_reference_of_an_image_is_accepted(image: str) -> None:
    """With or without registry, tag and digest."""
    check_image(image, "--proxy-image")


@pytest.mark.parametrize(
    "image",
    [
        "not an image!!", " m", "m ", "m\n", "Upper", "m:", "m:.1", "m:" + "a" * 129, "m@sha256:12", "m//n",
        "/m", "m/", "https://example.com/m", "a.-b", "ä", "x" * 256,
    ],
)  # fmt: skip
def test_other_text_is_no_reference_of_an_image(image: str) -> None:
    """The kubelet would refuse it only when the pod starts."""
    with pytest.raises(InputError, match="is not the reference of an image") as error:
        check_image(image, "--proxy-image")
    assert error.value.where == "--proxy-image"
