#!/bin/sh
# Makes .venv with everything that meshscrape and its tests need, as any user, without installing anything
# system-wide. Safe to run again: what is there already is kept.
set -eu
cd "$(dirname "$0")/.."

python=${PYTHON:-python3}
venv=.venv

say() { printf 'setup: %s\n' "$*" >&2; }
die() { say "$*"; exit 2; }

command -v "$python" >/dev/null 2>&1 ||
    die "no $python on PATH; install Python 3.11 or later (Debian: apt-get install python3), or set PYTHON"
"$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' ||
    die "$("$python" --version 2>&1) is too old; meshscrape needs 3.11 or later, set PYTHON to one"
[ "$(uname -s)" = Linux ] || die "$(uname -s) is not Linux; use the container image (see Dockerfile)"

# A pip for an interpreter that comes without one: Debian splits ensurepip and venv from python3. The wheel is
# unpacked from Debian's own package into a private directory, which needs no rights.
borrow_pip() {
    wheel=$(find .cache/pip-wheel /usr/share/python-wheels -name 'pip-*.whl' 2>/dev/null | head -n 1)
    if [ -z "$wheel" ]; then
        command -v apt-get >/dev/null 2>&1 ||
            die "$python has no ensurepip; install your distribution's venv package for it"
        say "python3 comes without pip; taking it from Debian's package, unpacked into .cache"
        apt=$PWD/.cache/apt
        mkdir -p "$apt/lists/partial" "$apt/cache/archives/partial" .cache/pip-wheel
        cp /var/lib/dpkg/status "$apt/status"
        private="-qq -o Dir::State::Lists=$apt/lists -o Dir::State::status=$apt/status -o Dir::Cache=$apt/cache"
        [ "$(id -u)" != 0 ] || private="$private -o APT::Sandbox::User=root"
        # shellcheck disable=SC2086
        (cd "$apt" && apt-get $private update >&2 && apt-get $private download python3-pip-whl >&2) ||
            die "could not download python3-pip-whl; install it instead: apt-get install python3-venv"
        dpkg-deb -x "$apt"/python3-pip-whl_*.deb .cache/pip-wheel
        rm -rf "$apt"
        wheel=$(find .cache/pip-wheel -name 'pip-*.whl' | head -n 1)
        [ -n "$wheel" ] || die "Debian's python3-pip-whl holds no pip wheel; apt-get install python3-venv"
    fi
    PYTHONPATH=$wheel "$venv/bin/python" -m pip install --quiet --disable-pip-version-check pip
}

if ! "$venv/bin/python" -m pip --version >/dev/null 2>&1; then
    rm -rf "$venv"
    say "making $venv with $("$python" --version)"
    if "$python" -c 'import ensurepip' >/dev/null 2>&1; then
        "$python" -m venv "$venv"
    else
        "$python" -m venv --without-pip "$venv" || die "$python has no venv module; install it"
        borrow_pip
    fi
fi

say "installing the locked packages"
"$venv/bin/python" -m pip install --quiet --disable-pip-version-check --no-deps --require-hashes -r requirements.txt
"$venv/bin/python" -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
"$venv/bin/python" -m compileall -q src >/dev/null || true

say "looking for Prometheus"
"$venv/bin/python" -m meshscrape.local.binaries
touch "$venv/.ready"
