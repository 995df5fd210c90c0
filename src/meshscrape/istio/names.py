"""Names that Istio, Kubernetes and meshscrape give to things: annotations, labels, variables, groups, files.

A name that more than one module needs stands here once, and `tests/unit/istio/test_names.py` fails when
another module spells it again. An environment variable's constant is called like the variable.
"""

from __future__ import annotations

# Annotations that Prometheus configurations read by convention.
PROMETHEUS_SCRAPE = "prometheus.io/scrape"
PROMETHEUS_PORT = "prometheus.io/port"
PROMETHEUS_PATH = "prometheus.io/path"
PROMETHEUS_SCHEME = "prometheus.io/scheme"

# Istio's annotations of a pod.
MERGE_METRICS = "prometheus.istio.io/merge-metrics"
SCRAPE_TARGETS = "prometheus.istio.io/scrape-targets"
SECURE_PORT = "prometheus.istio.io/secure-port"
SECURE_ENVOY_PORT = "prometheus.istio.io/secure-envoy-port"
PROXY_CONFIG_ANNOTATION = "proxy.istio.io/config"
INCLUDE_INBOUND = "traffic.sidecar.istio.io/includeInboundPorts"
EXCLUDE_INBOUND = "traffic.sidecar.istio.io/excludeInboundPorts"
INCLUDE_OUTBOUND = "traffic.sidecar.istio.io/includeOutboundIPRanges"
EXCLUDE_OUTBOUND = "traffic.sidecar.istio.io/excludeOutboundIPRanges"
STATUS = "sidecar.istio.io/status"
BOOTSTRAP_OVERRIDE = "sidecar.istio.io/bootstrapOverride"
INTERCEPTION_MODE = "sidecar.istio.io/interceptionMode"
USER_VOLUME = "sidecar.istio.io/userVolume"
USER_VOLUME_MOUNT = "sidecar.istio.io/userVolumeMount"
TEMPLATES = "inject.istio.io/templates"
NATIVE_SIDECAR = "sidecar.istio.io/nativeSidecar"

# Kubernetes numbers the revisions of a Deployment in this annotation.
DEPLOYMENT_REVISION = "deployment.kubernetes.io/revision"

# Annotations of meshscrape.
LOCAL_COMMAND = "meshscrape.io/local-command"
SUPPRESS = "meshscrape.io/suppress"
# A new value makes the pods restart, because Envoy reads a bootstrap override at its start only.
BOOTSTRAP_CHECKSUM = "meshscrape.io/bootstrap-checksum"
# The values that a run has overwritten in an object, by JSON Pointer: `remove` restores them.
OVERWRITTEN = "meshscrape.io/overwritten"
# Only in memory: the version that a running istiod tells, on its Deployment.
TOLD_VERSION = "meshscrape.io/told-version"

# Prometheus spells an annotation in a meta label with underscores.
SECURE_PORT_META = "prometheus_istio_io_secure_port"
SECURE_ENVOY_PORT_META = "prometheus_istio_io_secure_envoy_port"

# Labels. INJECT is an annotation too, in older manifests.
INJECT = "sidecar.istio.io/inject"
NAMESPACE_INJECTION = "istio-injection"
REVISION = "istio.io/rev"
TLS_MODE = "security.istio.io/tlsMode"
NAMESPACE_NAME = "kubernetes.io/metadata.name"
APPLICATION_NAME = "app.kubernetes.io/name"
APPLICATION_INSTANCE = "app.kubernetes.io/instance"
MANAGED_BY = "app.kubernetes.io/managed-by"
OPERATED_BY = "operator.prometheus.io/name"

# API groups.
ISTIO_NETWORKING = "networking.istio.io"
ISTIO_SECURITY = "security.istio.io"
ISTIO_TELEMETRY = "telemetry.istio.io"
ASM_GROUP = "istio.alibabacloud.com"
# In ASM, objects of these groups are in an API server of their own.
CONTROL_PLANE_GROUPS = frozenset({ISTIO_NETWORKING, ISTIO_SECURITY, ISTIO_TELEMETRY, ASM_GROUP})
NETWORKING_GROUP = "networking.k8s.io"
ISTIO_INSTALL = "install.istio.io"
RBAC_GROUP = "rbac.authorization.k8s.io"
DISCOVERY_GROUP = "discovery.k8s.io"
MONITORING_GROUP = "monitoring.coreos.com"
ROLLOUTS_GROUP = "argoproj.io"
MONITORING_V1 = "monitoring.coreos.com/v1"
# The apiVersion of the documents that meshscrape writes.
DOCUMENT_VERSION = "meshscrape.io/v1"

# Containers, ports and namespaces that Istio and Kubernetes bring along.
PROXY_CONTAINER = "istio-proxy"
ENVOY_STATS_PORT_NAME = "http-envoy-prom"
ROOT_NAMESPACE = "istio-system"
# Istio's injector leaves pods of these namespaces alone, whatever their labels say.
NEVER_INJECTED = frozenset({"kube-system", "kube-public", "kube-node-lease", "local-path-storage"})

# Files and paths.
CERTIFICATE_CHAIN_FILE = "cert-chain.pem"
PRIVATE_KEY_FILE = "key.pem"
ROOTS_FILE = "root-cert.pem"
# The agent serves the merged metrics here, and the injector points prometheus.io/path to it.
MERGED_PATH = "/stats/prometheus"

# What a workload needs to ask istiod for a certificate: a token for this audience, and the ConfigMap with the
# CA's root that istiod writes into every namespace (istio/istio `pkg/bootstrap/platform`, `pkg/security`).
CA_TOKEN_AUDIENCE = "istio-ca"  # noqa: S105
CA_ROOT_CONFIG_MAP = "istio-ca-root-cert"

# Environment variables of Istio's agent.
CA_ADDR = "CA_ADDR"
CA_ROOT_CA = "CA_ROOT_CA"
ECC_CURVE = "ECC_CURVE"
ECC_SIGNATURE_ALGORITHM = "ECC_SIGNATURE_ALGORITHM"
ENVOY_PROMETHEUS_PORT = "ENVOY_PROMETHEUS_PORT"
ENVOY_SECURE_MERGED_METRICS_PORT = "ENVOY_SECURE_MERGED_METRICS_PORT"
ENVOY_SECURE_METRICS_PORT = "ENVOY_SECURE_METRICS_PORT"
ENVOY_STATUS_PORT = "ENVOY_STATUS_PORT"
INBOUND_CAPTURE_PORTS = "INBOUND_CAPTURE_PORTS"
INSTANCE_IP = "INSTANCE_IP"
INSTANCE_IPS = "INSTANCE_IPS"
ISTIO_BOOTSTRAP_OVERRIDE = "ISTIO_BOOTSTRAP_OVERRIDE"
ISTIO_META_WORKLOAD_NAME = "ISTIO_META_WORKLOAD_NAME"
ISTIO_PROMETHEUS_ANNOTATIONS = "ISTIO_PROMETHEUS_ANNOTATIONS"
METRICS_LOCALHOST_ACCESS_ONLY = "METRICS_LOCALHOST_ACCESS_ONLY"
OUTPUT_CERTS = "OUTPUT_CERTS"
PILOT_AGENT_MERGE_ENVOY_STATS = "PILOT_AGENT_MERGE_ENVOY_STATS"
POD_NAME = "POD_NAME"
POD_NAMESPACE = "POD_NAMESPACE"
PROXY_CONFIG = "PROXY_CONFIG"
SECRET_GRACE_PERIOD_RATIO = "SECRET_GRACE_PERIOD_RATIO"  # noqa: S105
SECRET_GRACE_PERIOD_RATIO_JITTER = "SECRET_GRACE_PERIOD_RATIO_JITTER"  # noqa: S105
SECRET_TTL = "SECRET_TTL"  # noqa: S105
SERVICE_ACCOUNT = "SERVICE_ACCOUNT"
STATUS_PORT = "STATUS_PORT"
TRUST_DOMAIN = "TRUST_DOMAIN"
WORKLOAD_RSA_KEY_SIZE = "WORKLOAD_RSA_KEY_SIZE"

# Environment variables of meshscrape.
MESHSCRAPE_AGENT_DIR = "MESHSCRAPE_AGENT_DIR"
MESHSCRAPE_CA_WAIT = "MESHSCRAPE_CA_WAIT"
MESHSCRAPE_ENVOY = "MESHSCRAPE_ENVOY"
MESHSCRAPE_ENVOY_CONCURRENCY = "MESHSCRAPE_ENVOY_CONCURRENCY"
MESHSCRAPE_INBOUND = "MESHSCRAPE_INBOUND"
MESHSCRAPE_INSIDE_ADDRESS = "MESHSCRAPE_INSIDE_ADDRESS"
MESHSCRAPE_MERGE_MAX_BYTES = "MESHSCRAPE_MERGE_MAX_BYTES"
MESHSCRAPE_MERGE_MAX_SERIES = "MESHSCRAPE_MERGE_MAX_SERIES"
MESHSCRAPE_MERGE_SCRAPE_SERIES = "MESHSCRAPE_MERGE_SCRAPE_SERIES"
MESHSCRAPE_OUTPUT_CERTS_MODE = "MESHSCRAPE_OUTPUT_CERTS_MODE"
MESHSCRAPE_PROMETHEUS = "MESHSCRAPE_PROMETHEUS"
MESHSCRAPE_PROMTOOL = "MESHSCRAPE_PROMTOOL"
MESHSCRAPE_PROXY_REQUESTS_PER_CONNECTION = "MESHSCRAPE_PROXY_REQUESTS_PER_CONNECTION"
MESHSCRAPE_RENEWAL_SPREAD = "MESHSCRAPE_RENEWAL_SPREAD"
MESHSCRAPE_ROUTES = "MESHSCRAPE_ROUTES"
MESHSCRAPE_SCRAPERS = "MESHSCRAPE_SCRAPERS"
MESHSCRAPE_SCRAPERS_CA = "MESHSCRAPE_SCRAPERS_CA"
MESHSCRAPE_SCRAPERS_FILE = "MESHSCRAPE_SCRAPERS_FILE"
MESHSCRAPE_TOKEN_PATH = "MESHSCRAPE_TOKEN_PATH"  # noqa: S105
