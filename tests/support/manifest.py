"""A small mesh of every supported kind, written compactly; tests change it one text at a time."""

from __future__ import annotations

MANIFEST = """\
apiVersion: v1
kind: Namespace
metadata: {name: shop}
---
apiVersion: v1
kind: ServiceAccount
metadata: {name: web, namespace: shop}
---
apiVersion: v1
kind: Service
metadata: {name: web-service, namespace: shop}
spec:
  selector: {app: web}
  ports:
  - {name: http, port: 80, targetPort: http}
  - {name: dns, port: 53, protocol: UDP}
---
apiVersion: apps/v1
kind: Deployment
metadata:
  name: web
  namespace: shop
spec:
  replicas: 1
  selector: {matchLabels: {app: web}}
  template:
    metadata:
      labels: {app: web, version: v1}
      annotations:
        prometheus.io/scrape: "true"
        prometheus.io/port: "9080"
        prometheus.istio.io/secure-port: "15092"
        meshscrape.io/local-command: serve --bind $(INSIDE_ADDRESS):9080
        proxy.istio.io/config: |
          # settings of the agent
          proxyMetadata:
            ENVOY_SECURE_MERGED_METRICS_PORT: "15092"
            SECRET_TTL: 1h
    spec:
      serviceAccountName: web
      terminationGracePeriodSeconds: 5
      containers:
      - name: web
        image: example/web
        resources: {limits: {cpu: "1"}}
        readinessProbe: {httpGet: {path: /, port: 9080}}
        env:
        - {name: COLOUR, value: blue}
        - {name: EMPTY}
        ports:
        - {name: http, containerPort: 9080}
        - {containerPort: 9100}
        - {containerPort: 53, protocol: UDP}
---
apiVersion: apps/v1
kind: Deployment
metadata: {name: edge}
spec:
  template:
    metadata:
      labels: {istio: ingressgateway}
      annotations: {inject.istio.io/templates: gateway}
    spec:
      containers:
      - name: istio-proxy
        image: auto
        env:
        - {name: ENVOY_SECURE_METRICS_PORT, value: "15091"}
---
apiVersion: apps/v1
kind: Deployment
metadata: {name: prometheus, namespace: istio-system}
spec:
  template:
    metadata:
      annotations:
        proxy.istio.io/config: |
          proxyMetadata: {INBOUND_CAPTURE_PORTS: "", OUTPUT_CERTS: /certs}
    spec:
      containers:
      - name: prometheus
        ports: [{name: web, containerPort: 9090}]
---
apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata: {name: default, namespace: istio-system}
spec:
  mtls: {mode: STRICT}
---
apiVersion: networking.istio.io/v1
kind: Gateway
metadata: {name: entrance}
spec:
  selector: {istio: ingressgateway}
  servers:
  - port: {number: 8080, name: http, protocol: HTTP}
    hosts: ["*"]
---
apiVersion: networking.istio.io/v1beta1
kind: VirtualService
metadata: {name: routes, namespace: shop}
spec:
  hosts: ["*"]
  gateways: [default/entrance]
  http:
  - match: [{uri: {prefix: /direct}}]
    route: [{destination: {host: web, port: {number: 9100}}}]
  - route: [{destination: {host: web-service.shop.svc.cluster.local, port: {number: 80}}, weight: 100}]
"""
