{{/* Values as TOML. Helm's own toToml writes whole numbers of values as 896.0, which the services rightly refuse. */}}

{{/* One value. A JSON text is also a TOML text. */}}
{{- define "medfleet.toml.value" -}}
{{- if kindIs "string" . -}}{{ toJson . }}
{{- else if kindIs "bool" . -}}{{ . }}
{{- else if kindIs "slice" . -}}
[{{ range $index, $item := . }}{{ if $index }}, {{ end }}{{ include "medfleet.toml.value" $item }}{{ end }}]
{{- else if eq (float64 .) (float64 (int64 .)) -}}{{ int64 . }}
{{- else -}}{{ . }}
{{- end -}}
{{- end -}}

{{- define "medfleet.toml.key" -}}
{{- if regexMatch "^[A-Za-z0-9_-]+$" . -}}{{ . }}{{- else -}}{{ toJson . }}{{- end -}}
{{- end -}}

{{/* dict "path" "encode.worker" "table" {…}: plain values first, then the tables inside, as TOML demands. */}}
{{- define "medfleet.toml" -}}
{{- $path := .path -}}
[{{ $path }}]
{{- range $key, $value := .table }}
{{- if not (kindIs "map" $value) }}
{{ include "medfleet.toml.key" $key }} = {{ include "medfleet.toml.value" $value }}
{{- end }}
{{- end }}
{{- range $key, $value := .table }}
{{- if kindIs "map" $value }}
{{ include "medfleet.toml" (dict "path" (printf "%s.%s" $path (include "medfleet.toml.key" $key)) "table" $value) }}
{{- end }}
{{- end }}
{{- end -}}
