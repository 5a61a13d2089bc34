#!/usr/bin/env bash
# RFC 6455 + permessage-deflate conformance of a WebSocket ECHO SERVER, by Autobahn|Testsuite's fuzzingclient.
#
#   autobahn.sh ws://127.0.0.1:9000/ [CASES] [OUTDIR]
#       CASES   comma-separated, e.g. '1.*,2.*,6.4.1' (default '*' = all 517)
#       OUTDIR  reports go here (default: a new folder under ${TMPDIR:-/tmp})
#   autobahn.sh --setup            only build / check the venv
#
# The server must echo every message with its type (text stays text).  Environment:
#   AUTOBAHN_VENV        venv to use or build                     (~/.cache/gowsev-autobahn)    
#   AUTOBAHN_PYTHON      interpreter to build it with, 3.8..3.12  (python3)
#   AUTOBAHN_EXCLUDE     comma-separated cases to leave out       (none; '9.*,12.*,13.*' gives the quick run)
#   AUTOBAHN_LIMIT       seconds for the whole run                (1800)
#   AUTOBAHN_CASE_LIMIT  seconds for one case                     (120)
#   AUTOBAHN_AGENT       name in the report                       (server)
#   AUTOBAHN_FAIL_ON     what counts as failing                   (FAILED,UNCLEAN; also UNIMPLEMENTED, NON-STRICT,
#                                                                  'WRONG CODE' may be added)
#   AUTOBAHN_HTML=1      also upstream's HTML report
# Exit: 0 all cases ran and none is failing; 1 failing cases; 2 usage/setup; 3 not every case ran; 4 harness error.
set -u
HERE=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
VENV=${AUTOBAHN_VENV:-${XDG_CACHE_HOME:-$HOME/.cache}/gowsev-autobahn}
# Everything pinned, installed with --no-deps.  autobahn 0.10.9 is the engine upstream itself pins.
PINS=(setuptools==79.0.1 wheel==0.45.1 attrs==26.1.0 Automat==25.4.16 cffi==2.1.1 constantly==23.10.4
      cryptography==44.0.0 hyperlink==21.0.0 idna==3.20 Incremental==24.11.0 Jinja2==3.1.6 MarkupSafe==3.0.2
      packaging==26.3 pyasn1==0.6.5 pyasn1_modules==0.4.2 pycparser==3.12 pyOpenSSL==24.3.0
      service-identity==24.2.0 six==1.17.0 Twisted==24.11.0 txaio==2.1.0 typing_extensions==4.16.0
      wsaccel==0.6.7 zope.interface==7.2)
SUITE=autobahntestsuite==25.10.1

setup() {
  [ -x "$VENV/bin/python" ] && "$VENV/bin/python" "$HERE/autobahn_py3.py" --check 2>/dev/null && return 0
  echo "autobahn: preparing $VENV ..." >&2
  mkdir -p "$(dirname "$VENV")"
  (
    flock -w 600 9 || exit 2
    [ -x "$VENV/bin/python" ] && "$VENV/bin/python" "$HERE/autobahn_py3.py" --check 2>/dev/null && exit 0
    [ -x "$VENV/bin/python" ] || "${AUTOBAHN_PYTHON:-python3}" -m venv "$VENV" || exit 2
    "$VENV/bin/python" -W ignore -c 'import lib2to3' 2>/dev/null ||
      { echo "autobahn: $VENV/bin/python has no lib2to3 (Python 3.8 .. 3.12 is needed)" >&2; exit 2; }
    pip() { timeout 600 "$VENV/bin/python" -m pip --disable-pip-version-check -q "$@" >"$VENV/pip.log" 2>&1 ||
            { cat "$VENV/pip.log" >&2; exit 2; }; }
    rm -rf "$VENV"/lib/python3*/site-packages/autobahntestsuite
    pip install --no-deps "${PINS[@]}"
    pip install --no-deps --no-build-isolation autobahn==0.10.9
    # Not compiled: a patch can leave a file's size and second as they were, and Python would go on with the old bytecode.
    pip install --no-deps --no-compile --force-reinstall "$SUITE"
    "$VENV/bin/python" -W ignore "$HERE/autobahn_py3.py" >&2 || exit 2
  ) 9>"$VENV.lock"
}

[ "${BASH_SOURCE[0]}" = "$0" ] || return 0       # sourced by autobahn_client.sh for setup()
if [ "${1:-}" = --setup ]; then setup || exit 2; exit 0; fi
case "${1:-}" in ws://*|wss://*) ;; *) sed -n '2,/^set -u/p' "$0" | sed '$d;s/^# \{0,1\}//' >&2; exit 2;; esac
URL=$1 CASES=${2:-*} OUT=${3:-}
[ -n "$CASES" ] || CASES='*'
[ -n "$OUT" ] || OUT=$(mktemp -d "${TMPDIR:-/tmp}/autobahn.XXXXXX")
LIMIT=${AUTOBAHN_LIMIT:-1800}
setup || exit 2
mkdir -p "$OUT" && rm -f "$OUT/run.json" "$OUT/index.json" || exit 2
# the driver ends itself at LIMIT and still writes its report; timeout is the backstop
timeout -k 10 $((${LIMIT%.*} + 60)) "$VENV/bin/python" "$HERE/autobahn_drive.py" client --url "$URL" --out "$OUT" \
  --cases "$CASES" --exclude "${AUTOBAHN_EXCLUDE:-}" --agent "${AUTOBAHN_AGENT:-server}" --limit "$LIMIT" \
  --case-limit "${AUTOBAHN_CASE_LIMIT:-120}" ${AUTOBAHN_HTML:+--html}
RC=$?
[ $RC -eq 2 ] && exit 2
[ $RC -eq 0 ] || { echo "autobahn: the driver failed, exit $RC (see $OUT)" >&2; exit 4; }
"$VENV/bin/python" "$HERE/autobahn_drive.py" summary --out "$OUT" --fail-on "${AUTOBAHN_FAIL_ON:-FAILED,UNCLEAN}"
RC=$?
echo "reports: $OUT"
exit $RC
