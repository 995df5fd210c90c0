{{- define "meshscrape.name" -}}
{{- if contains "meshscrape" .Release.Name -}}
{{- .Release.Name | trunc 40 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-meshscrape" .Release.Name | trunc 40 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}

{{- define "meshscrape.labels" -}}
app.kubernetes.io/name: meshscrape
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version }}
{{- end -}}

{{- define "meshscrape.image" -}}
{{- $repository := required "image.repository is empty: build the image (make image), push it, and set its name; or set proxy.enabled and verifier.enabled to false" .Values.image.repository -}}
{{- if .Values.image.digest -}}
{{ $repository }}@{{ .Values.image.digest }}
{{- else -}}
{{ $repository }}:{{ .Values.image.tag | default .Chart.AppVersion }}
{{- end -}}
{{- end -}}

{{- define "meshscrape.prometheusNamespace" -}}
{{- .Values.prometheus.namespace | default .Release.Namespace -}}
{{- end -}}

{{/* The parts of Prometheus's pod: files/proxy.json, with the values in the place of its placeholders. */}}
{{- define "meshscrape.proxy" -}}
{{- $text := .Files.Get "files/proxy.json" -}}
{{- $text = $text | replace "IMAGE-OF-MESHSCRAPE" (include "meshscrape.image" .) -}}
{{- $text = $text | replace "ADDRESS-OF-THE-CA" .Values.mesh.caAddress -}}
{{- $text = $text | replace "TRUST-DOMAIN-OF-THE-MESH" .Values.mesh.trustDomain -}}
{{- $parts := fromJson $text -}}
{{- $more := list -}}
{{- range .Values.proxy.namespaces }}{{ $more = concat $more (list "--namespace" .) }}{{ end -}}
{{- range .Values.mesh.trustDomainAliases }}{{ $more = concat $more (list "--trust-domain-alias" .) }}{{ end -}}
{{- range $parts.initContainers -}}
{{- if eq .name "scrape-proxy" }}{{ $_ := set . "args" (concat .args $more) }}{{ end -}}
{{- end -}}
{{- toYaml $parts -}}
{{- end -}}

{{- define "meshscrape.verifier" -}}
{{- printf "%s-verifier" (include "meshscrape.name" .) -}}
{{- end -}}

{{- define "meshscrape.verifierPort" -}}
9464
{{- end -}}

{{- define "meshscrape.verifierSelector" -}}
app.kubernetes.io/name: meshscrape
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/component: verifier
{{- end -}}

{{/* The pod's spec of the verifier. `more` has further arguments of `meshscrape verify`. */}}
{{- define "meshscrape.verifierPod" -}}
{{- $root := .root -}}
serviceAccountName: {{ include "meshscrape.verifier" $root }}
enableServiceLinks: false
containers:
  - name: verify
    image: {{ include "meshscrape.image" $root }}
    args:
      - verify
      - --kubernetes
      - --quiet
      {{- range .more }}
      - {{ . | quote }}
      {{- end }}
      {{- range $root.Values.verifier.namespaces }}
      - --namespace
      - {{ . | quote }}
      {{- end }}
    {{- if eq $root.Values.verifier.kind "Deployment" }}
    ports:
      - name: metrics
        containerPort: {{ include "meshscrape.verifierPort" $root }}
        protocol: TCP
    {{- end }}
    resources:
      requests:
        cpu: 50m
        memory: 128Mi
    securityContext:
      allowPrivilegeEscalation: false
      capabilities:
        drop: [ALL]
      readOnlyRootFilesystem: true
      runAsNonRoot: true
      runAsUser: 1337
      runAsGroup: 1337
      seccompProfile:
        type: RuntimeDefault
{{- end -}}
