{{- /* What the schema cannot say: relations between values. Nothing is rendered here; each failure
       names the path. Included before anything that would stumble over what is refused here, with a worse message. */ -}}
{{- define "medfleet.need" -}}
{{- if not .value -}}{{- fail (printf "%s: %s" .path .why) -}}{{- end -}}
{{- end -}}
{{/* dict "path" "resources" "for" a setting: a pod has cores of its own only where all of its containers are given what they
     ask for, no more and no less. */}}
{{- define "medfleet.checks.guaranteed" -}}
{{- $requests := default dict .resources.requests -}}
{{- $limits := default dict .resources.limits -}}
{{- range $key := list "cpu" "memory" -}}
  {{- $limit := toString (default "" (get $limits $key)) -}}
  {{- include "medfleet.need" (dict "value" $limit "path" (printf "%s.limits.%s" $.path $key) "why" (printf "needed with %s: a pod gets cores of its own where its requests are its limits" $.for)) -}}
  {{- $request := toString (default $limit (get $requests $key)) -}}
  {{- if ne $request $limit -}}{{- fail (printf "%s.requests.%s: %s is not the limit, %s; with %s it must be, or be left out: a pod gets cores of its own where its requests are its limits" $.path $key $request $limit $.for) -}}{{- end -}}
{{- end -}}
{{- end -}}
{{/* A size as Kubernetes (8Gi) or a service (8 GiB) writes it → MiB; 0 for other forms. */}}
{{- define "medfleet.mib" -}}
{{- $size := regexFind "^[0-9]+ ?[MGT]i" (toString .) -}}
{{- if $size -}}
{{- mul (regexFind "^[0-9]+" $size | int64) (get (dict "Mi" 1 "Gi" 1024 "Ti" 1048576) (regexFind "[MGT]i" $size)) -}}
{{- else -}}0{{- end -}}
{{- end -}}
{{- define "medfleet.checks" -}}
{{- $own := .Values.nats.own -}}
{{- $external := .Values.nats.external -}}
{{- if eq .Values.nats.mode "own" -}}
  {{- if and (eq (int $own.replicas) 1) (ne $own.syncInterval "always") -}}
    {{- fail (printf "nats.own.syncInterval: %s, but a single server must have always: accepted jobs would be lost in a power cut" $own.syncInterval) -}}
  {{- end -}}
  {{- if $own.tls.enabled -}}{{- include "medfleet.need" (dict "value" $own.tls.secretName "path" "nats.own.tls.secretName" "why" "needed with nats.own.tls.enabled") -}}{{- end -}}
{{- else -}}
  {{- include "medfleet.need" (dict "value" $external.urls "path" "nats.external.urls" "why" "at least one address is needed with nats.mode external") -}}
  {{- $kind := $external.auth.kind -}}
  {{- range $role := splitList " " (include "medfleet.roles" .) -}}
    {{- $auth := include "medfleet.natsAuth" (dict "root" $ "role" $role) | fromJson -}}
    {{- if ne $kind "none" -}}{{- include "medfleet.need" (dict "value" $auth.secretName "path" "nats.external.auth.secretName" "why" (printf "needed with kind %s, or roles.%s.secretName; kind none means no authentication" $kind $role)) -}}{{- end -}}
    {{- if eq $kind "user" -}}{{- include "medfleet.need" (dict "value" $auth.userName "path" "nats.external.auth.userName" "why" (printf "needed with kind user, or roles.%s.userName" $role)) -}}{{- end -}}
  {{- end -}}
  {{- range $role, $own := $external.auth.roles -}}
    {{- if and $own (not (has $kind (list "credentials" "user"))) -}}{{- fail (printf "nats.external.auth.roles.%s: has no meaning with kind %s; allowed with credentials and user" $role $kind) -}}{{- end -}}
    {{- if and (default dict $own).userName (ne $kind "user") -}}{{- fail (printf "nats.external.auth.roles.%s.userName: has no meaning with kind %s, whose file says the user" $role $kind) -}}{{- end -}}
  {{- end -}}
  {{- if $external.tls.enabled -}}{{- include "medfleet.need" (dict "value" $external.tls.secretName "path" "nats.external.tls.secretName" "why" "needed with nats.external.tls.enabled") -}}{{- end -}}
{{- end -}}
{{- if and .Values.ingest.service.externalTrafficPolicy (eq .Values.ingest.service.type "ClusterIP") -}}{{- fail "ingest.service.externalTrafficPolicy: has no meaning with type ClusterIP, which nobody outside reaches; allowed with NodePort and LoadBalancer" -}}{{- end -}}
{{- if .Values.ingest.tls.enabled -}}{{- include "medfleet.need" (dict "value" .Values.ingest.tls.secretName "path" "ingest.tls.secretName" "why" "needed with ingest.tls.enabled") -}}{{- end -}}
{{- if and .Values.ingest.tls.clientCa .Values.helmTest.enabled -}}{{- fail "helmTest.enabled: the test shows no client certificate, which ingest.tls.clientCa demands; switch one of them off" -}}{{- end -}}
{{- if and .Values.ingest.tls.enabled .Values.helmTest.enabled -}}{{- include "medfleet.need" (dict "value" .Values.helmTest.ca.secretName "path" "helmTest.ca.secretName" "why" "needed with ingest.tls: the test must know who signed the certificate") -}}{{- end -}}
{{- if .Values.tokenPath.tls.enabled -}}
  {{- if not .Values.tokenPath.direct -}}{{- fail "tokenPath.tls.enabled: has no meaning with tokenPath.direct false, which makes no connection; switch one of them" -}}{{- end -}}
  {{- include "medfleet.need" (dict "value" .Values.tokenPath.tls.secretName "path" "tokenPath.tls.secretName" "why" "needed with tokenPath.tls.enabled") -}}
{{- end -}}
{{- $edge := .Values.ingest.edge -}}
{{- if $edge.hub -}}
  {{- include "medfleet.need" (dict "value" $edge.tokens.secretName "path" "ingest.edge.tokens.secretName" "why" "needed with ingest.edge.hub") -}}
  {{- include "medfleet.need" (dict "value" $edge.ca.secretName "path" "ingest.edge.ca.secretName" "why" "needed with ingest.edge.hub: no other authority is trusted") -}}
  {{- if include "medfleet.encodes" . -}}
    {{- include "medfleet.need" (dict "value" .Values.pools "path" "pools" "why" "needed where tokens travel: the images are encoded at this site") -}}
    {{- if $edge.aliases -}}{{- fail "ingest.edge.aliases: leave it empty where tokens travel; a pool of this site, with the hub's vision weights, has the hub's name of a model among its aliases" -}}{{- end -}}
    {{- range $name, $spec := .Values.pools -}}
      {{- if eq $spec.kind "embedder" -}}{{- fail (printf "pools.%s.kind: an edge hands on the tokens of a writer alone" $name) -}}{{- end -}}
    {{- end -}}
  {{- else -}}
    {{- include "medfleet.need" (dict "value" $edge.aliases "path" "ingest.edge.aliases" "why" "needed with ingest.edge.hub: names of the hub's models") -}}
    {{- if .Values.pools -}}{{- fail "pools: an edge hands its files on to ingest.edge.hub and has no workers; leave pools empty, or let tokens travel (ingest.edge.config.travels or tenants)" -}}{{- end -}}
  {{- end -}}
  {{- if .Values.networkPolicy.enabled -}}{{- include "medfleet.need" (dict "value" .Values.networkPolicy.hubPeers "path" "networkPolicy.hubPeers" "why" "needed with ingest.edge.hub, or it is not reached") -}}{{- end -}}
{{- else if $edge.aliases -}}
  {{- fail "ingest.edge.aliases: has no meaning without ingest.edge.hub" -}}
{{- end -}}
{{- $s3 := .Values.store.s3 -}}
{{- if eq .Values.store.kind "s3" -}}
  {{- include "medfleet.need" (dict "value" $s3.region "path" "store.s3.region" "why" "needed with store.kind s3; compatible stores often take us-east-1") -}}
  {{- if and (hasPrefix "http://" $s3.endpoint) (not $s3.allowHttp) -}}{{- fail "store.s3.endpoint: must begin with https://, or store.s3.allowHttp be true for tests inside one machine" -}}{{- end -}}
{{- end -}}
{{- $policy := .Values.networkPolicy -}}
{{- if $policy.enabled -}}
  {{- $named := list "prometheusPeers" "dnsPeers" -}}
  {{- if and (eq .Values.autoscaling.workers "keda") .Values.autoscaling.keda.activateFromNats -}}{{- $named = append $named "kedaPeers" -}}{{- end -}}
  {{- range $peers := $named -}}
    {{- include "medfleet.need" (dict "value" (get $policy $peers) "path" (printf "networkPolicy.%s" $peers) "why" "needs at least one peer; an empty list would open the port to everybody") -}}
  {{- end -}}
  {{- if eq .Values.store.kind "s3" -}}{{- include "medfleet.need" (dict "value" $policy.storePeers "path" "networkPolicy.storePeers" "why" "needed with store.kind s3, or no pod reaches it") -}}{{- end -}}
  {{- if eq .Values.nats.mode "external" -}}{{- include "medfleet.need" (dict "value" $policy.natsPeers "path" "networkPolicy.natsPeers" "why" "needed with nats.mode external, or no pod reaches it") -}}{{- end -}}
  {{- if .Values.process.otlpEndpoint -}}{{- include "medfleet.need" (dict "value" $policy.otlpPeers "path" "networkPolicy.otlpPeers" "why" "needed with process.otlpEndpoint, or no pod reaches it") -}}{{- end -}}
{{- end -}}
{{- if and .Values.podMonitor.enabled (eq .Values.autoscaling.workers "keda") -}}
  {{- $interval := .Values.podMonitor.interval -}}
  {{- $each := dict "ms" 1 "s" 1000 "m" 60000 -}}
  {{- $millis := mul (regexFind "^[0-9]+" $interval | int64) (get $each (regexFind "[a-z]+$" $interval)) -}}
  {{- if gt $millis 30000 -}}{{- fail (printf "podMonitor.interval: %s, but KEDA asks for the backlog of the last minute, and takes none for a failure: allowed with autoscaling.workers keda is 30s or less" $interval) -}}{{- end -}}
{{- end -}}
{{- range $workload, $scale := dict "ingest" .Values.ingest.scale -}}
  {{- if gt (int $scale.min) (int $scale.max) -}}{{- fail (printf "%s.scale.min: %d is more than %s.scale.max, %d" $workload (int $scale.min) $workload (int $scale.max)) -}}{{- end -}}
{{- end -}}
{{- range $name, $spec := .Values.pools -}}
  {{- $kind := $spec.model.kind -}}
  {{- $weights := default "plain" $spec.model.weights -}}
  {{- $forms := get (dict "folder" (list "plain" "q8_0") "gguf" (list "plain" "stored") "simulated" (list "plain")) $kind -}}
  {{- if eq $spec.kind "embedder" -}}{{- $forms = list "plain" -}}{{- end -}}
  {{- if not (has $weights $forms) -}}{{- fail (printf "pools.%s.model.weights: %s is not for kind %s in a pool of kind %s; allowed: %s" $name $weights $kind $spec.kind ($forms | join ", ")) -}}{{- end -}}
  {{- if ne $kind "gguf" -}}
    {{- range $key := list "vision" "tokenizer" -}}
      {{- if get $spec.model $key -}}{{- fail (printf "pools.%s.model.%s: has no meaning with kind %s; a folder has its own" $name $key $kind) -}}{{- end -}}
    {{- end -}}
  {{- end -}}
  {{- with $spec.model.cache -}}
    {{- $path := printf "pools.%s.model.cache" $name -}}
    {{- if eq $kind "simulated" -}}{{- fail (printf "%s: has no meaning with kind simulated, which keeps nothing" $path) -}}{{- end -}}
    {{- if and .claimName .sizeGiB -}}{{- fail (printf "%s: claimName and sizeGiB are given; a claim that exists has a size of its own, so one of them is needed" $path) -}}{{- end -}}
    {{- if and .storageClassName (not .sizeGiB) -}}{{- fail (printf "%s.storageClassName: has no meaning without sizeGiB, with which the chart makes a claim" $path) -}}{{- end -}}
  {{- end -}}
  {{- if ne $kind "simulated" -}}
    {{- $volume := default dict $spec.model.volume -}}
    {{- $given := compact (list $volume.claimName $volume.image $volume.prefix) -}}
    {{- if ne (len $given) 1 -}}{{- fail (printf "pools.%s.model.volume: %d of claimName, image and prefix are given; exactly one is needed with kind %s" $name (len $given) $kind) -}}{{- end -}}
    {{- if $volume.prefix -}}
      {{- include "medfleet.need" (dict "value" $volume.sha256 "path" (printf "pools.%s.model.volume.sha256" $name) "why" "needed with prefix: what `medfleet weights list` prints of the model") -}}
      {{- include "medfleet.need" (dict "value" $volume.sizeGiB "path" (printf "pools.%s.model.volume.sizeGiB" $name) "why" "needed with prefix: the disk that a pod may take for the model") -}}
      {{- include "medfleet.need" (dict "value" $.Values.modelStore.bucket "path" "modelStore.bucket" "why" (printf "needed with pools.%s.model.volume.prefix" $name)) -}}
      {{- include "medfleet.need" (dict "value" $.Values.modelStore.region "path" "modelStore.region" "why" (printf "needed with pools.%s.model.volume.prefix; compatible stores often take us-east-1" $name)) -}}
      {{- if and (hasPrefix "http://" $.Values.modelStore.endpoint) (not $.Values.modelStore.allowHttp) -}}{{- fail "modelStore.endpoint: must begin with https://, or modelStore.allowHttp be true for tests inside one machine" -}}{{- end -}}
      {{- if $policy.enabled -}}{{- include "medfleet.need" (dict "value" $policy.modelPeers "path" "networkPolicy.modelPeers" "why" (printf "needed with pools.%s.model.volume.prefix, or no pod reaches modelStore" $name)) -}}{{- end -}}
    {{- else if $volume.sizeGiB -}}
      {{- fail (printf "pools.%s.model.volume.sizeGiB: has no meaning without prefix; a claim and an image have a size of their own" $name) -}}
    {{- end -}}
    {{- range $key := ternary (list "path" "vision" "dtype") (list "path" "dtype") (eq $kind "gguf") -}}
      {{- include "medfleet.need" (dict "value" (get $spec.model $key) "path" (printf "pools.%s.model.%s" $name $key) "why" (printf "needed with kind %s" $kind)) -}}
    {{- end -}}
    {{- if $spec.model.simulated -}}{{- fail (printf "pools.%s.model.simulated: has no meaning with kind %s" $name $kind) -}}{{- end -}}
  {{- end -}}
  {{- if and (eq $spec.kind "embedder") (ne $kind "folder") -}}
    {{- fail (printf "pools.%s.model.kind: a pool of kind embedder needs folder; %s only writes" $name (ternary "the simulated model" "a GGUF" (eq $kind "simulated"))) -}}
  {{- end -}}
  {{- range $stage := splitList " " (include "medfleet.stages" $) -}}
    {{- $given := include "medfleet.stage" (dict "stage" $stage "spec" $spec) | fromJson -}}
    {{- $path := printf "pools.%s.%s" $name $stage -}}
    {{- if gt (int $given.scale.min) (int $given.scale.max) -}}{{- fail (printf "%s.scale.min: %d is more than %s.scale.max, %d" $path (int $given.scale.min) $path (int $given.scale.max)) -}}{{- end -}}
    {{- $device := $given.device -}}
    {{- if and (eq $device.compute "cpu") $device.resource -}}{{- fail (printf "%s.device.resource: %s would be reserved and never used; device.compute says cpu" $path $device.resource) -}}{{- end -}}
    {{- if and (ne $device.compute "cpu") (not $device.resource) -}}{{- fail (printf "%s.device.resource: needed with device.compute %s, such as nvidia.com/gpu" $path $device.compute) -}}{{- end -}}
    {{- if and (ne $device.compute "cpu") (eq $spec.model.kind "simulated") -}}{{- fail (printf "%s.device.compute: the simulated model has no device; allowed: cpu" $path) -}}{{- end -}}
    {{- if and (eq $stage "decode") (ne $device.compute "cpu") (ne $weights "plain") -}}{{- fail (printf "%s.device.compute: quantised weights are multiplied on CPUs; allowed with model.weights %s: cpu" $path $weights) -}}{{- end -}}
    {{- if $device.pinThreads -}}
      {{- $setting := printf "%s.device.pinThreads" $path -}}
      {{- if or (ne $device.compute "cpu") (eq $spec.model.kind "simulated") -}}{{- fail (printf "%s: pins the threads that compute a model on CPUs, and there are none" $setting) -}}{{- end -}}
      {{- include "medfleet.checks.guaranteed" (dict "path" (printf "%s.resources" $path) "resources" $given.resources "for" $setting) -}}
      {{- $cores := toString $given.resources.limits.cpu -}}
      {{- if not (regexMatch "^[0-9]+$" $cores) -}}{{- fail (printf "%s.resources.limits.cpu: %s is no whole number; needed with %s, which keeps each thread on a core" $path $cores $setting) -}}{{- end -}}
      {{- if dig "volume" "sha256" "" $spec.model -}}{{- include "medfleet.checks.guaranteed" (dict "path" "modelStore.resources" "resources" $.Values.modelStore.resources "for" $setting) -}}{{- end -}}
    {{- end -}}
    {{- if and (eq $stage "decode") (eq $device.compute "cpu") (ne $kind "simulated") -}}
      {{- $kv := dig "kv_bytes_max" "" $given.config -}}
      {{- $limit := dig "limits" "memory" "" $given.resources -}}
      {{- $all := include "medfleet.mib" $limit | int64 -}}
      {{- if and $all (ge (include "medfleet.mib" $kv | int64) $all) -}}{{- fail (printf "%s.config.kv_bytes_max: %s, but %s.resources.limits.memory is %v, of which the weights take a part too: the pod would be killed once as much is written" $path $kv $path $limit) -}}{{- end -}}
    {{- end -}}
  {{- end -}}
{{- end -}}
{{- end -}}
