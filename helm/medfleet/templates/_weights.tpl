{{/* The container that fetches a model, or only checks one, before the service starts. While it fails the pod does not become
     ready, and its log says which file is not what the list says. */}}

{{/* The pool's model → the folder with its list. */}}
{{- define "medfleet.weights.folder" -}}
{{- if eq .kind "gguf" -}}/models{{- else -}}/models/{{ trimPrefix "/" .path }}{{- end -}}
{{- end -}}

{{- define "medfleet.weights" -}}
{{- $volume := .spec.model.volume -}}
{{- $store := .root.Values.modelStore -}}
{{- $resources := deepCopy $store.resources -}}
{{- /* Asked for, so that no node is chosen that has no such room; there every pod would be in danger. */ -}}
{{- if $volume.prefix -}}{{- $resources = mustMergeOverwrite (dict "requests" (dict "ephemeral-storage" (printf "%dGi" (int $volume.sizeGiB)))) $resources -}}{{- end -}}
- name: weights
  image: {{ include "medfleet.image" (dict "root" .root "image" .root.Values.images.cli) | quote }}
  imagePullPolicy: {{ .root.Values.images.pullPolicy }}
  args:
    - weights
    - {{ ternary "fetch" "check" (not (empty $volume.prefix)) }}
    - {{ include "medfleet.weights.folder" .spec.model | quote }}
    - --sha256={{ $volume.sha256 }}
    {{- if $volume.prefix }}
    - {{ printf "--bucket=%s" $store.bucket | quote }}
    - {{ printf "--prefix=%s" $volume.prefix | quote }}
    - {{ printf "--region=%s" $store.region | quote }}
    {{- with $store.endpoint }}
    - {{ printf "--endpoint=%s" . | quote }}
    {{- end }}
    {{- if $store.allowHttp }}
    - --allow-http
    {{- end }}
    {{- with $store.credentials }}
    {{- if .secretName }}
    - {{ printf "--access-key-id-file=/etc/medfleet/model-store/%s" .accessKeyIdKey | quote }}
    - {{ printf "--secret-access-key-file=/etc/medfleet/model-store/%s" .secretAccessKeyKey | quote }}
    {{- end }}
    {{- end }}
    {{- with $store.ca }}
    {{- if .secretName }}
    - {{ printf "--ca=/etc/medfleet/model-store-ca/%s" .key | quote }}
    {{- end }}
    {{- end }}
    {{- end }}
  resources:
    {{- toYaml $resources | nindent 4 }}
  securityContext:
    {{- include "medfleet.containerSecurity" .root | nindent 4 }}
  volumeMounts:
    - { name: model, mountPath: /models{{ if not $volume.prefix }}, readOnly: true{{ end }} }
    {{- if $volume.prefix }}
    {{- if $store.credentials.secretName }}
    - { name: model-store, mountPath: /etc/medfleet/model-store, readOnly: true }
    {{- end }}
    {{- if $store.ca.secretName }}
    - { name: model-store-ca, mountPath: /etc/medfleet/model-store-ca, readOnly: true }
    {{- end }}
    {{- end }}
{{- end -}}

{{/* dict "root" "pool" "spec" → the claim in which starts keep what the next need not make again; empty for none. */}}
{{- define "medfleet.cache.claim" -}}
{{- $cache := default dict .spec.model.cache -}}
{{- if $cache.claimName -}}{{ $cache.claimName }}
{{- else if $cache.sizeGiB -}}{{ include "medfleet.name" (dict "root" .root "component" "cache" "pool" .pool) }}
{{- end -}}
{{- end -}}
