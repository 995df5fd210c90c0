"""The mesh's certificate authority, speaking Istio's CreateCertificate."""
