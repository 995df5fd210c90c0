"""The messages of Istio's CA: `istio.v1.auth.IstioCertificateService/CreateCertificate`.

Source: istio.io/api `security/v1alpha1/ca.proto`. The message classes are built from descriptors when this
module is imported, in a descriptor pool of their own, so no generated code can clash with another's.
"""

from __future__ import annotations

from typing import Any

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory, struct_pb2

from meshscrape.istio.names import CA_TOKEN_AUDIENCE

CREATE_CERTIFICATE = "/istio.v1.auth.IstioCertificateService/CreateCertificate"
# The audience a token must be meant for (Istio's `istio-token` volume asks Kubernetes for exactly this one).
AUDIENCE = CA_TOKEN_AUDIENCE

_Field = descriptor_pb2.FieldDescriptorProto


def _field(message: descriptor_pb2.DescriptorProto, name: str, number: int, **kind: Any) -> None:
    message.field.add(name=name, number=number, **{"label": _Field.LABEL_OPTIONAL, **kind})


def _pool() -> descriptor_pool.DescriptorPool:
    file = descriptor_pb2.FileDescriptorProto(
        name="security/v1alpha1/ca.proto",
        package="istio.v1.auth",
        syntax="proto3",
        dependency=[struct_pb2.DESCRIPTOR.name],
    )
    request = file.message_type.add(name="IstioCertificateRequest")
    _field(request, "csr", 1, type=_Field.TYPE_STRING)
    _field(request, "validity_duration", 3, type=_Field.TYPE_INT64)
    _field(request, "metadata", 4, type=_Field.TYPE_MESSAGE, type_name=".google.protobuf.Struct")
    response = file.message_type.add(name="IstioCertificateResponse")
    _field(response, "cert_chain", 1, type=_Field.TYPE_STRING, label=_Field.LABEL_REPEATED)
    pool = descriptor_pool.DescriptorPool()
    pool.AddSerializedFile(struct_pb2.DESCRIPTOR.serialized_pb)
    pool.AddSerializedFile(file.SerializeToString())
    return pool


_POOL = _pool()


def _message(name: str) -> Any:
    return message_factory.GetMessageClass(_POOL.FindMessageTypeByName(f"istio.v1.auth.{name}"))


# `csr`: PEM; `validity_duration`: seconds, 0 for the CA's own choice; `metadata`: not read.
IstioCertificateRequest = _message("IstioCertificateRequest")
# `cert_chain`: PEM, the leaf first, then intermediates; the last element is the whole root bundle.
IstioCertificateResponse = _message("IstioCertificateResponse")
