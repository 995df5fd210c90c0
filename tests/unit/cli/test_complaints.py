"""What the command line says about a wrong command line: one line with place, problem and remedy."""

from __future__ import annotations

import pytest

from meshscrape.cli import main as entry


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
