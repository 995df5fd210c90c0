"""Commands of manifests, and what children get of the user's environment."""

from __future__ import annotations

import pytest

from meshscrape.errors import InputError
from meshscrape.local.environment import base_environment, command, substitute

VARIABLES = {"POD_IP": "127.20.1.1", "PORT": "80", "SPACED": "a b"}


def test_variables_are_replaced_as_in_kubernetes() -> None:
    """`$(VAR)` anywhere in the text; a doubled dollar keeps it."""
    assert substitute("$(POD_IP):$(PORT)", VARIABLES, "here") == "127.20.1.1:80"
    assert substitute("$$(POD_IP) $PORT ${PORT}", VARIABLES, "here") == "$(POD_IP) $PORT ${PORT}"


def test_an_unknown_variable_is_refused_with_its_place() -> None:
    """A mistake is reported where it is written."""
    with pytest.raises(InputError, match=r"^mesh\.yaml:3: \$\(PROT\) is not set"):
        substitute("$(PROT)", VARIABLES, "mesh.yaml:3")


def test_a_value_never_becomes_several_words_or_a_shell_command() -> None:
    """Values are put into words after splitting, and no shell runs."""
    assert command("run '$(SPACED)' $(SPACED) ; rm", VARIABLES, "here") == ("run", "a b", "a b", ";", "rm")


@pytest.mark.parametrize("line", ["", "  ", "run 'this"])
def test_malformed_command_is_refused(line: str) -> None:
    """Nothing to run, or unbalanced quotes."""
    with pytest.raises(InputError):
        command(line, VARIABLES, "here")


def test_children_get_no_secret_and_no_setting_of_the_user() -> None:
    """Only what programs need to run at all is passed on."""
    env = {"HOME": "/h", "PATH": "/bin", "AWS_SECRET": "x", "MESHSCRAPE_SCRAPERS": "y", "LD_PRELOAD": "z"}
    passed = base_environment(env)
    assert passed["HOME"] == "/h" and passed["PATH"].endswith(":/bin")
    assert not {"AWS_SECRET", "MESHSCRAPE_SCRAPERS", "LD_PRELOAD"} & passed.keys()
