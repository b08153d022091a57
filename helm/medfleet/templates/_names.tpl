{{/* Names, labels and images. Every label value is quoted: a release may be called y. */}}

{{- define "medfleet.fullname" -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride -}}
{{- else -}}
{{- $name := default .Chart.Name .Values.nameOverride -}}
{{- if contains $name .Release.Name -}}{{ .Release.Name }}{{- else -}}{{ .Release.Name }}-{{ $name }}{{- end -}}
{{- end -}}
{{- end -}}

{{/* dict "root" $ "component" "encode" ["pool" name] → the name of a workload's objects, at most 52 characters: KEDA and
     the controllers put more behind it, and a label value ends at 63. */}}
{{- define "medfleet.name" -}}
{{- $name := printf "%s-%s" (include "medfleet.fullname" .root) .component -}}
{{- if .pool -}}{{- $name = printf "%s-%s" $name .pool -}}{{- end -}}
{{- if gt (len $name) 52 -}}
{{- fail (printf "the name %s has %d characters, 52 are allowed: choose a shorter release name, fullnameOverride or pool name" $name (len $name)) -}}
{{- end -}}
{{- /* What Helm takes for a release's name is more than a Service's may be: half of the objects would be there by then. */ -}}
{{- if not (regexMatch "^[a-z]([-a-z0-9]*[a-z0-9])?$" $name) -}}
{{- fail (printf "the name %s is none for a Service, which has a letter first, then a-z, 0-9 and dashes: choose another release name or fullnameOverride" $name) -}}
{{- end -}}
{{- $name -}}
{{- end -}}

{{- define "medfleet.serviceAccountName" -}}
{{- if .Values.serviceAccount.create -}}
{{- default (include "medfleet.fullname" .) .Values.serviceAccount.name -}}
{{- else -}}
{{- default "default" .Values.serviceAccount.name -}}
{{- end -}}
{{- end -}}

{{/* What selects the pods of a workload. */}}
{{- define "medfleet.selector" -}}
app.kubernetes.io/name: {{ default .root.Chart.Name .root.Values.nameOverride | quote }}
app.kubernetes.io/instance: {{ .root.Release.Name | quote }}
{{- with .component }}
app.kubernetes.io/component: {{ . | quote }}
{{- end }}
{{- with .pool }}
medfleet.dev/pool: {{ . | quote }}
{{- end }}
{{- end -}}

{{/* "labels" beside what the selector takes: more of them, which stand above commonLabels. */}}
{{- define "medfleet.labels" -}}
{{ include "medfleet.selector" . }}
app.kubernetes.io/version: {{ .root.Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .root.Release.Service | quote }}
helm.sh/chart: {{ printf "%s-%s" .root.Chart.Name .root.Chart.Version | quote }}
{{- range $key, $value := merge (dict) (default dict .labels) .root.Values.commonLabels }}
{{ $key }}: {{ $value | quote }}
{{- end }}
{{- end -}}

{{/* dict "root" $ "image" {repository, tag, digest}: by digest when there is one. */}}
{{- define "medfleet.image" -}}
{{- $image := .image -}}
{{- $place := $image.repository -}}
{{- with .root.Values.images.registry -}}{{- $place = printf "%s/%s" (trimSuffix "/" .) $place -}}{{- end -}}
{{- if $image.digest -}}
{{- printf "%s@%s" $place $image.digest -}}
{{- else -}}
{{- printf "%s:%s" $place (default .root.Chart.AppVersion $image.tag) -}}
{{- end -}}
{{- end -}}
