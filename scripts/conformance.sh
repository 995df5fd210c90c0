#!/bin/sh
# conformance.sh TIER [PYTEST ARGUMENTS]: run the scenarios of a tier, `core` or `whole`.
#   KUBECONFIG     run on this cluster (Istio and the Gateway API's CRDs must be installed) instead of one of processes
#   CLUSTER_NAME   what the rows of docs/conformance.md call it
#   CAPABILITIES   what it can show, comma separated: istio-envoy, kube-proxy, policies
#   CLUSTERS       how many clusters of processes share the scenarios, each with its own part; 2 unless set
#   ROWS           the page that the rows are written into; empty: none
set -eu
cd "$(dirname "$0")/.."
tier=$1
shift
rows=${ROWS-docs/conformance.md}
set -- --tier "$tier" "$@"
[ -z "$rows" ] || set -- --rows "$rows" "$@"
if [ -n "${KUBECONFIG:-}" ]; then
    set -- --use-kubeconfig "$KUBECONFIG" --capabilities "${CAPABILITIES:-}" "$@"
    [ -z "${CLUSTER_NAME:-}" ] || set -- --cluster-name "$CLUSTER_NAME" "$@"
fi
if [ -z "${KUBECONFIG:-}" ]; then
    # Before the tests: each of them has a time limit, and building takes half an hour when nothing is cached.
    PYTHONPATH=tests .venv/bin/python -m conformance.cluster build $([ "$tier" = core ] || echo all)
    # Two clusters side by side, each with its own scenarios: most of their time they wait.
    set -- -n "${CLUSTERS:-2}" -v "$@"
fi
exec .venv/bin/pytest tests/conformance --timeout 900 --durations 0 --durations-min 5 "$@"
