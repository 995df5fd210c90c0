"""The annotation `proxy.istio.io/config`: a pod's part of Istio's ProxyConfig, as YAML."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache

from meshscrape.errors import InputError, Place, Where
from meshscrape.istio.fields import Document, Field, load_documents
from meshscrape.istio.names import PROXY_CONFIG_ANNOTATION

_PLACE = Place(annotation=PROXY_CONFIG_ANNOTATION)

# Fields of istio.mesh.v1alpha1.ProxyConfig; only used to recognise misspelt ones.
KNOWN_FIELDS = (
    "configPath", "binaryPath", "serviceCluster", "drainDuration", "discoveryAddress",
    "discoveryRefreshDelay", "zipkinAddress", "statsdUdpAddress", "proxyAdminPort", "controlPlaneAuthPolicy",
    "customConfigFile", "statNameLength", "concurrency", "proxyBootstrapTemplatePath", "interceptionMode",
    "tracing", "envoyAccessLogService", "envoyMetricsService", "proxyMetadata", "runtimeValues", "statusPort",
    "extraStatTags", "gatewayTopology", "terminationDrainDuration", "meshId", "readinessProbe",
    "proxyStatsMatcher", "holdApplicationUntilProxyStarts", "caCertificatesPem", "image",
    "privateKeyProvider", "proxyHeaders", "fileFlushInterval", "fileFlushMinSizeKb", "statsCompression",
    "connectionSettings", "parentShutdownDuration",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class ProxyConfig:
    """A pod's ProxyConfig.

    `metadata` is proxyMetadata: environment variables of the agent. `raw` has all fields as written.

    `lines` are the lines of the variables within the text, from 1.
    """

    metadata: Mapping[str, str] = field(default_factory=dict)
    raw: Mapping[str, object] = field(default_factory=dict)
    lines: Mapping[str, int] = field(default_factory=dict, compare=False)

    @property
    def status_port(self) -> int | None:
        """Return the port of the merged metrics (statusPort), or None when it is not set."""
        port = self.raw.get("statusPort")
        return port if isinstance(port, int) else None


def parse_proxy_config(yaml_text: str, where: Where = _PLACE) -> ProxyConfig:
    """Return the ProxyConfig that `yaml_text` spells; fields that are not known here are kept in `raw`.

    Raises InputError at `where` with the line within the text: for YAML that cannot be read, for values of
    proxyMetadata that are not strings (as Istio does), and for fields that look misspelt.
    """
    try:
        return _parse(yaml_text)
    except InputError as error:
        inner = Place(text_line=error.place.line, field=error.place.field)
        raise InputError(
            error.what, where=inner.within(Place.of(where)), remedy=error.remedy, code=error.code
        ) from error


def _parse(yaml_text: str) -> ProxyConfig:
    documents = load_documents(yaml_text, "")
    if len(documents) > 1:
        raise InputError("more than one YAML document", remedy="keep one", code="several-documents")
    document = documents[0] if documents else Document({}, "")
    root = Field.of(document, "")
    root.no_misspelt(*KNOWN_FIELDS)
    if "statusPort" in document.data:
        root.port("statusPort")
    metadata = root.strings("proxyMetadata")
    lines = {name: document.lines["proxyMetadata", name] for name in metadata}
    return ProxyConfig(metadata, document.data, lines)


@lru_cache(maxsize=4096)
def read_proxy_config(yaml_text: str) -> tuple[Mapping[str, object], str]:
    """Return the fields of `yaml_text`, and the reason why they cannot be read (empty when they can).

    Pods of one workload have the same text, so results are cached.
    """
    try:
        documents = load_documents(yaml_text, "")
    except InputError as error:
        return {}, str(error.at(Place(text_line=error.place.line)))
    if len(documents) > 1:
        return {}, "more than one YAML document"
    return (documents[0].data if documents else {}), ""


def proxy_metadata(config: object) -> dict[str, str]:
    """Return the strings of proxyMetadata of a ProxyConfig; Istio reads the spelling proxy_metadata too."""
    if not isinstance(config, Mapping):
        return {}
    metadata = config.get("proxyMetadata", config.get("proxy_metadata"))
    entries = metadata.items() if isinstance(metadata, Mapping) else ()
    return {str(name): value for name, value in entries if isinstance(value, str)}
