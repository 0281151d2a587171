# Sourced by the scripts beside it, from the project's root, with the extras that they need: `. scripts/venv.sh server,cli` or
# `. scripts/venv.sh dev`, which has all. Makes .venv, installs the project into it, editable, and does nothing when what
# pyproject.toml says of the install has not changed since. One process at a time does it.
_fencepost_install_settings() { awk '/^\[/ { on = /^\[(build-system|project|tool\.hatch)/ } on' pyproject.toml; }
_fencepost_venv() {
    local extras=$1 stamp python
    for stamp in .venv/.installed-dev ".venv/.installed-$extras"; do
        if [ -f "$stamp" ] && _fencepost_install_settings | cmp -s - "$stamp"; then return 0; fi
    done
    for python in "${PYTHON:-}" python3 python3.14 python3.13 python3.12 python3.11; do
        [ -n "$python" ] && command -v "$python" >/dev/null 2>&1 &&
            "$python" -c 'import sys, venv; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && break
        python=
    done
    if [ -z "$python" ]; then echo "fencepost: needs Python 3.11 or newer (set PYTHON)" >&2; return 1; fi
    echo "fencepost: installing into .venv with $($python --version) …" >&2
    [ -x .venv/bin/python ] || "$python" -m venv .venv
    .venv/bin/python -m pip install --quiet --disable-pip-version-check --editable ".[$extras]"
    .venv/bin/python -m compileall -q proto node controller client scripts  # so that the first start is as quick as others
    _fencepost_install_settings >"$stamp"
}
mkdir -p .venv
exec 9>.venv/.lock
if command -v flock >/dev/null 2>&1; then flock 9; fi
_fencepost_venv "$1"
exec 9>&-
