{{/* Edges that several components have. */}}

{{- define "medfleet.edge.metrics" -}}
- from:
    {{- toYaml .Values.networkPolicy.prometheusPeers | nindent 4 }}
  ports: [{ protocol: TCP, port: {{ (include "medfleet.ports" . | fromJson).admin }} }]
{{- end -}}

{{- define "medfleet.edge.dns" -}}
- to:
    {{- toYaml .Values.networkPolicy.dnsPeers | nindent 4 }}
  ports: [{ protocol: UDP, port: 53 }, { protocol: TCP, port: 53 }]
{{- end -}}

{{/* dict "url" … "default" port → the port of a URL. */}}
{{- define "medfleet.edge.port" -}}
{{- $host := (urlParse .url).host -}}
{{- $port := regexFind ":[0-9]+$" $host | trimPrefix ":" -}}
{{- if $port -}}{{ $port }}{{- else if hasPrefix "https:" .url -}}{{ default 443 .default }}{{- else -}}{{ default 80 .default }}{{- end -}}
{{- end -}}

{{/* NATS, DNS, the blob store and the collector: what every service reaches. */}}
{{- define "medfleet.edge.shared" -}}
{{- $ports := include "medfleet.ports" . | fromJson -}}
{{- $policy := .Values.networkPolicy -}}
{{- if eq .Values.nats.mode "own" -}}
- to:
    - podSelector:
        matchLabels:
          {{- include "medfleet.selector" (dict "root" . "component" "nats") | nindent 10 }}
  ports: [{ protocol: TCP, port: {{ $ports.client }} }]
{{- else -}}
{{- $numbers := list -}}
{{- range .Values.nats.external.urls -}}{{- $numbers = append $numbers (include "medfleet.edge.port" (dict "url" . "default" 4222)) -}}{{- end -}}
- to:
    {{- toYaml $policy.natsPeers | nindent 4 }}
  ports:
    {{- range uniq $numbers }}
    - { protocol: TCP, port: {{ . }} }
    {{- end }}
{{- end }}
{{ include "medfleet.edge.dns" . }}
{{- if eq .Values.store.kind "s3" }}
- to:
    {{- toYaml $policy.storePeers | nindent 4 }}
  ports: [{ protocol: TCP, port: {{ include "medfleet.edge.port" (dict "url" (default "https://s3" .Values.store.s3.endpoint)) }} }]
{{- end }}
{{- with .Values.process.otlpEndpoint }}
- to:
    {{- toYaml $policy.otlpPeers | nindent 4 }}
  ports: [{ protocol: TCP, port: {{ include "medfleet.edge.port" (dict "url" .) }} }]
{{- end }}
{{- end -}}
