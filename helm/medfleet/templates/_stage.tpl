{{/* A stage of a pool: its values with their defaults, and what follows from them. */}}

{{/* dict "stage" … "spec" the pool */}}
{{- define "medfleet.stage.defaults" -}}
replicas: 1
config: {}
nodeSelector: {}
tolerations: []
affinity: {}
priorityClassName: ""
podAnnotations: {}
image: {}
runtimeClassName: ""
device: { compute: cpu, resource: "", count: 1, pinThreads: false }
{{- if eq .stage "preprocess" }}
startupSeconds: 120
scale: { enabled: false, min: 1, max: 8, cpuPercent: 70 }
resources: { requests: { cpu: "1", memory: 1Gi }, limits: { memory: 4Gi } }
{{- else }}
startupSeconds: 900
scale: { min: 0, max: 4, targetSeconds: 30 }
{{- $computes := eq (dig "decode" "device" "compute" "cpu" .spec) "cpu" -}}
{{- if and (eq .stage "decode") (ne .spec.model.kind "simulated") (eq .spec.kind "writer") $computes }}
# MedGemma 4B in bf16 takes 7.3 GiB, keys and values 2 GiB as they are written: with 8 it would be killed by its first volume.
resources: { requests: { cpu: "2", memory: 12Gi }, limits: { memory: 12Gi } }
{{- else }}
resources: { requests: { cpu: "2", memory: 4Gi }, limits: { memory: 8Gi } }
{{- end }}
{{- end }}
{{- end -}}

{{/* dict "stage" … "spec" the pool → the stage's values over the defaults, as JSON. */}}
{{- define "medfleet.stage" -}}
{{- $defaults := include "medfleet.stage.defaults" . | fromYaml -}}
{{- $given := default dict (get .spec .stage) -}}
{{- $merged := mustMergeOverwrite $defaults (deepCopy $given) -}}
{{- /* Resources are the operator's as a whole: half of theirs and half of ours would fit nobody. */ -}}
{{- with get $given "resources" -}}{{- $_ := set $merged "resources" . -}}{{- end -}}
{{- toJson $merged -}}
{{- end -}}

{{/* The stages that have workers: an edge whose images stay has none that writes. */}}
{{- define "medfleet.stages" -}}
preprocess encode{{ if not .Values.ingest.edge.hub }} decode{{ end }}
{{- end -}}

{{/* Whether decoders ask encoders for tokens; empty for no. */}}
{{- define "medfleet.direct" -}}
{{- if and .Values.tokenPath.direct (not .Values.ingest.edge.hub) -}}yes{{- end -}}
{{- end -}}

{{/* Whether encoders show a certificate to decoders; empty for no. */}}
{{- define "medfleet.direct.tls" -}}
{{- if and (include "medfleet.direct" .) .Values.tokenPath.tls.enabled -}}yes{{- end -}}
{{- end -}}

{{/* The name in that certificate: one for all encoders, whose pods are found by address. */}}
{{- define "medfleet.direct.name" -}}
{{- include "medfleet.name" (dict "root" . "component" "encode") -}}
{{- end -}}

{{/* Whether this is an edge of whose tenants' jobs, of some at least, tokens travel; empty for no. */}}
{{- define "medfleet.encodes" -}}
{{- $edge := .Values.ingest.edge -}}
{{- $rules := list (dig "travels" "files" $edge.config) -}}
{{- range $tenant, $own := dig "tenants" dict $edge.config -}}{{- $rules = append $rules $own.travels -}}{{- end -}}
{{- if and $edge.hub (has "tokens" $rules) -}}yes{{- end -}}
{{- end -}}

{{/* Units that one worker of the stage takes at a time: as the service's own defaults. */}}
{{- define "medfleet.stage.slots" -}}
{{- dig "worker" "slots" (ternary 4 1 (eq .stage "decode")) .given.config -}}
{{- end -}}

{{/* Limits and requests with the device among them. */}}
{{- define "medfleet.stage.resources" -}}
{{- $resources := deepCopy .given.resources -}}
{{- with .given.device -}}
{{- if .resource -}}
{{- $_ := set $resources "limits" (mustMergeOverwrite (default dict $resources.limits) (dict .resource (int .count))) -}}
{{- end -}}
{{- end -}}
{{- toYaml $resources -}}
{{- end -}}

{{/* Whether replicas are left to an autoscaler; empty for no. */}}
{{- define "medfleet.stage.scaled" -}}
{{- if eq .stage "preprocess" -}}
{{- if .given.scale.enabled -}}yes{{- end -}}
{{- else if ne .root.Values.autoscaling.workers "none" -}}yes
{{- end -}}
{{- end -}}

{{/* dict "root" "stage" "pool" "spec" "given": the whole Deployment. */}}
{{- define "medfleet.stage.deployment" -}}
{{- $root := .root -}}
{{- $name := include "medfleet.name" (dict "root" $root "component" .stage "pool" .pool) -}}
{{- $select := dict "root" $root "component" .stage "pool" .pool -}}
{{- $config := include "medfleet.config.stage" . -}}
{{- $image := mustMergeOverwrite (deepCopy (get $root.Values.images .stage)) .given.image -}}
{{- $hasModel := and (ne .stage "preprocess") (ne .spec.model.kind "simulated") -}}
{{- $hasTls := and (ne .stage "preprocess") (include "medfleet.direct.tls" $root) -}}
{{- $ports := include "medfleet.ports" $root | fromJson -}}
apiVersion: v1
kind: ConfigMap
metadata:
  name: {{ $name }}
  labels:
    {{- include "medfleet.labels" $select | nindent 4 }}
data:
  config.toml: |
    {{- $config | nindent 4 }}
---
apiVersion: apps/v1
kind: Deployment
metadata:
  name: {{ $name }}
  labels:
    {{- include "medfleet.labels" $select | nindent 4 }}
spec:
  {{- if not (include "medfleet.stage.scaled" .) }}
  replicas: {{ .given.replicas }}
  {{- end }}
  revisionHistoryLimit: 5
  # Half an hour more where the model is fetched first: the start-up probe begins after that.
  progressDeadlineSeconds: {{ add .given.startupSeconds 300 (ternary 1800 0 (and $hasModel (not (empty (dig "volume" "prefix" "" .spec.model))))) }}
  strategy:
    type: RollingUpdate
    rollingUpdate:
      {{- if .given.device.resource }}
      # A device is rarely free twice: the old pod goes first.
      maxSurge: 0
      maxUnavailable: 1
      {{- else }}
      maxSurge: 1
      maxUnavailable: 0
      {{- end }}
  selector:
    matchLabels:
      {{- include "medfleet.selector" $select | nindent 6 }}
  template:
    metadata:
      labels:
        {{- include "medfleet.labels" $select | nindent 8 }}
      annotations:
        checksum/config: {{ sha256sum $config }}
        {{- with .given.podAnnotations }}
        {{- toYaml . | nindent 8 }}
        {{- end }}
    spec:
      serviceAccountName: {{ include "medfleet.serviceAccountName" $root }}
      automountServiceAccountToken: false
      # A Service named medfleet-… would put MEDFLEET_… variables into every pod, which the services take for settings.
      enableServiceLinks: false
      terminationGracePeriodSeconds: {{ add $root.Values.process.drainSeconds $root.Values.process.graceMarginSeconds }}
      {{- include "medfleet.pullSecrets" $root | nindent 6 }}
      securityContext:
        {{- include "medfleet.podSecurity" $root | nindent 8 }}
      {{- with .given.runtimeClassName }}
      runtimeClassName: {{ . | quote }}
      {{- end }}
      {{- include "medfleet.placement" (merge (dict "given" .given) $select) | nindent 6 }}
      {{- if and $hasModel .spec.model.volume.sha256 }}
      initContainers:
        {{- include "medfleet.weights" . | nindent 8 }}
      {{- end }}
      containers:
        - name: {{ .stage }}
          image: {{ include "medfleet.image" (dict "root" $root "image" $image) | quote }}
          imagePullPolicy: {{ $root.Values.images.pullPolicy }}
          args: [--config, /etc/medfleet/config/config.toml]
          {{- if and (eq .stage "encode") (include "medfleet.direct" $root) }}
          env:
            # Decoders find this very pod by the address that goes into the manifest of the tokens.
            - name: POD_IP
              valueFrom: { fieldRef: { fieldPath: status.podIP } }
            - name: MEDFLEET_ENCODE__ADVERTISE
              value: {{ printf (ternary "%s://[$(POD_IP)]:%d" "%s://$(POD_IP):%d" (hasPrefix "[" $root.Values.process.listenAddress)) (ternary "https" "http" (not (empty (include "medfleet.direct.tls" $root)))) (int $ports.tokens) | quote }}
          {{- end }}
          ports:
            - { name: admin, containerPort: {{ $ports.admin }} }
            {{- if and (eq .stage "encode") (include "medfleet.direct" $root) }}
            - { name: tokens, containerPort: {{ $ports.tokens }} }
            {{- end }}
          {{- include "medfleet.probes" (dict "startupSeconds" .given.startupSeconds) | nindent 10 }}
          resources:
            {{- include "medfleet.stage.resources" . | nindent 12 }}
          securityContext:
            {{- include "medfleet.containerSecurity" $root | nindent 12 }}
          volumeMounts:
            {{- include "medfleet.secretMounts" (dict "root" $root "role" .stage) | nindent 12 }}
            {{- if $hasTls }}
            - { name: token-tls, mountPath: /etc/medfleet/token-tls, readOnly: true }
            {{- end }}
            {{- if $hasModel }}
            - { name: model, mountPath: /models, readOnly: true }
            - { name: digests, mountPath: /var/cache/medfleet }
            {{- end }}
      volumes:
        - name: config
          configMap:
            name: {{ $name }}
        {{- include "medfleet.secretVolumes" (dict "root" $root "role" .stage) | nindent 8 }}
        {{- if $hasTls }}
        {{- include "medfleet.secretVolume" (dict "name" "token-tls" "secret" $root.Values.tokenPath.tls.secretName "keys" (ternary (list "tls.crt" "tls.key") (list "ca.crt") (eq .stage "encode"))) | nindent 8 }}
        {{- end }}
        {{- if $hasModel }}
        - name: model
          {{- if .spec.model.volume.claimName }}
          persistentVolumeClaim: { claimName: {{ .spec.model.volume.claimName | quote }}, readOnly: true }
          {{- else if .spec.model.volume.prefix }}
          emptyDir: { sizeLimit: {{ .spec.model.volume.sizeGiB }}Gi }
          {{- else }}
          image: { reference: {{ .spec.model.volume.image | quote }}, pullPolicy: IfNotPresent }
          {{- end }}
        {{- if .spec.model.volume.prefix }}
        {{- include "medfleet.s3Volumes" (dict "name" "model-store" "s3" $root.Values.modelStore) | nindent 8 }}
        {{- end }}
        {{- with include "medfleet.cache.claim" . }}
        # What starts of other pods kept.
        - name: digests
          persistentVolumeClaim: { claimName: {{ . | quote }} }
        {{- else }}
        # Digests of the weights, so that a container that starts again in this pod need not hash them again.
        - name: digests
          emptyDir: { sizeLimit: 16Mi }
        {{- end }}
        {{- end }}
{{- end -}}
