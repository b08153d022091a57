{{/* What all pods have in common: security, probes, placement, secrets. */}}

{{- define "medfleet.podSecurity" -}}
runAsNonRoot: true
runAsUser: 65532
runAsGroup: 65532
fsGroup: 65532
fsGroupChangePolicy: OnRootMismatch
seccompProfile:
  type: RuntimeDefault
{{- end -}}

{{- define "medfleet.containerSecurity" -}}
allowPrivilegeEscalation: false
privileged: false
readOnlyRootFilesystem: true
runAsNonRoot: true
capabilities:
  drop: [ALL]
{{- end -}}

{{/* dict "startupSeconds" n: alive says only whether a restart would help, ready says whether work may come. The start
     may take as long as loading the weights takes; a start that never ends is tried again. */}}
{{- define "medfleet.probes" -}}
startupProbe:
  httpGet: { path: /readyz, port: admin }
  periodSeconds: 5
  timeoutSeconds: 3
  failureThreshold: {{ ceil (divf (float64 .startupSeconds) 5.0) | int }}
readinessProbe:
  httpGet: { path: /readyz, port: admin }
  periodSeconds: 5
  timeoutSeconds: 3
  failureThreshold: 2
livenessProbe:
  httpGet: { path: /healthz, port: admin }
  periodSeconds: 10
  timeoutSeconds: 5
  failureThreshold: 3
{{- end -}}

{{/* dict "root" $ "component" … "pool" … "given" the workload: where its pods may run. */}}
{{- define "medfleet.placement" -}}
{{- with .given.nodeSelector }}
nodeSelector:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .given.tolerations }}
tolerations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .given.affinity }}
affinity:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .given.priorityClassName }}
priorityClassName: {{ . | quote }}
{{- end }}
{{- if .root.Values.topologySpread.enabled }}
topologySpreadConstraints:
  - maxSkew: 1
    topologyKey: topology.kubernetes.io/zone
    whenUnsatisfiable: {{ .root.Values.topologySpread.whenUnsatisfiable }}
    labelSelector:
      matchLabels:
        {{- include "medfleet.selector" . | nindent 8 }}
  {{- /* Said because a constraint of its own takes from a pod those that the scheduler has for all: where nodes are in no
         zones, both pods of ingest could be on one. */}}
  - maxSkew: 1
    topologyKey: kubernetes.io/hostname
    whenUnsatisfiable: ScheduleAnyway
    labelSelector:
      matchLabels:
        {{- include "medfleet.selector" . | nindent 8 }}
{{- end }}
{{- end -}}

{{- define "medfleet.pullSecrets" -}}
{{- with .Values.images.pullSecrets }}
imagePullSecrets:
  {{- range . }}
  - name: {{ . | quote }}
  {{- end }}
{{- end }}
{{- end -}}

{{/* dict "root" $ "role" the service: mounts and volumes of the secrets that every service needs; only the named keys are
     mounted. */}}
{{- define "medfleet.secretMounts" -}}
{{- $store := .root.Values.store -}}
- { name: config, mountPath: /etc/medfleet/config, readOnly: true }
- { name: store-key, mountPath: /etc/medfleet/store, readOnly: true }
{{- if ne (include "medfleet.natsAuth" . | fromJson).secretName "" }}
- { name: nats-auth, mountPath: /etc/medfleet/nats/auth, readOnly: true }
{{- end }}
{{- if ne (include "medfleet.natsTlsSecret" .root) "" }}
- { name: nats-tls, mountPath: /etc/medfleet/nats/tls, readOnly: true }
{{- end }}
{{- if and (eq $store.kind "s3") $store.s3.credentials.secretName }}
- { name: s3, mountPath: /etc/medfleet/s3, readOnly: true }
{{- end }}
{{- if and (eq $store.kind "s3") $store.s3.ca.secretName }}
- { name: s3-ca, mountPath: /etc/medfleet/s3-ca, readOnly: true }
{{- end }}
{{- end -}}

{{- define "medfleet.secretVolume" -}}
- name: {{ .name }}
  secret:
    secretName: {{ .secret | quote }}
    defaultMode: 0440
    items:
      {{- range .keys }}
      - { key: {{ . | quote }}, path: {{ . | quote }} }
      {{- end }}
{{- end -}}

{{- define "medfleet.secretVolumes" -}}
{{- $nats := .root.Values.nats -}}
{{- $store := .root.Values.store -}}
{{ include "medfleet.secretVolume" (dict "name" "store-key" "secret" $store.key.secretName "keys" (list $store.key.key)) }}
{{- with include "medfleet.natsAuth" . | fromJson }}
{{- if .secretName }}
{{ include "medfleet.secretVolume" (dict "name" "nats-auth" "secret" .secretName "keys" (list .key)) }}
{{- end }}
{{- end }}
{{- with include "medfleet.natsTlsSecret" .root }}
{{- $keys := list "ca.crt" }}
{{- if and (eq $nats.mode "external") $nats.external.tls.clientCertificate }}{{- $keys = list "ca.crt" "tls.crt" "tls.key" }}{{- end }}
{{ include "medfleet.secretVolume" (dict "name" "nats-tls" "secret" . "keys" $keys) }}
{{- end }}
{{- if eq $store.kind "s3" }}
{{- include "medfleet.s3Volumes" (dict "name" "s3" "s3" $store.s3) }}
{{- end }}
{{- end -}}

{{/* dict "name" … "s3" {credentials, ca}: the volumes of its secrets, those that are named. */}}
{{- define "medfleet.s3Volumes" -}}
{{- with .s3.credentials }}
{{- if .secretName }}
{{ include "medfleet.secretVolume" (dict "name" $.name "secret" .secretName "keys" (list .accessKeyIdKey .secretAccessKeyKey)) }}
{{- end }}
{{- end }}
{{- with .s3.ca }}
{{- if .secretName }}
{{ include "medfleet.secretVolume" (dict "name" (printf "%s-ca" $.name) "secret" .secretName "keys" (list .key)) }}
{{- end }}
{{- end }}
{{- end -}}

{{/* dict "root" $ "role" the service → how it shows NATS who it is, as JSON: kind, secretName (empty for none), key in that
     Secret, and userName. */}}
{{- define "medfleet.natsAuth" -}}
{{- $nats := .root.Values.nats -}}
{{- if eq $nats.mode "own" -}}
{{- dict "kind" "token" "secretName" $nats.own.auth.secretName "key" $nats.own.auth.tokenKey | toJson -}}
{{- else -}}
{{- $auth := $nats.external.auth -}}
{{- $key := get (dict "credentials" $auth.credentialsKey "token" $auth.tokenKey "user" $auth.passwordKey) $auth.kind -}}
{{- $all := dict "kind" $auth.kind "secretName" (ternary "" $auth.secretName (eq $auth.kind "none")) "key" $key "userName" $auth.userName -}}
{{- /* What a role leaves empty is as for all. */ -}}
{{- merge (deepCopy (default dict (get (default dict $auth.roles) .role))) $all | toJson -}}
{{- end -}}
{{- end -}}

{{/* The services that are installed. */}}
{{- define "medfleet.roles" -}}
ingest{{ if .Values.pools }} {{ include "medfleet.stages" . }}{{ end }}
{{- end -}}

{{- define "medfleet.natsTlsSecret" -}}
{{- if eq .Values.nats.mode "own" -}}
{{- if .Values.nats.own.tls.enabled -}}{{ .Values.nats.own.tls.secretName }}{{- end -}}
{{- else if .Values.nats.external.tls.enabled -}}{{ .Values.nats.external.tls.secretName }}
{{- end -}}
{{- end -}}
