{{- /* Names are fixed: a cluster has one Torpor, and its Leases, its ClusterRoles and the fields it owns go by them. */ -}}

{{- /* Labels of an object: (list $ "operator"), or (list $ "") for what belongs to no component. */ -}}
{{- define "torpor.labels" -}}
{{- $root := index . 0 -}}
{{- $component := index . 1 -}}
app.kubernetes.io/name: torpor
{{- with $component }}
app.kubernetes.io/component: {{ . }}
{{- end }}
app.kubernetes.io/instance: {{ $root.Release.Name | quote }}
app.kubernetes.io/version: {{ $root.Chart.AppVersion | quote }}
app.kubernetes.io/part-of: torpor
app.kubernetes.io/managed-by: {{ $root.Release.Service }}
helm.sh/chart: {{ printf "%s-%s" $root.Chart.Name $root.Chart.Version | replace "+" "_" }}
{{- end }}

{{- /* Labels by which the pods of a component are found. They can never change: a Deployment's selector cannot. */ -}}
{{- define "torpor.selector" -}}
app.kubernetes.io/name: torpor
app.kubernetes.io/component: {{ . }}
{{- end }}

{{- /* Torpor's own image. A mirror takes the place of the registry and keeps the path. */ -}}
{{- define "torpor.image" -}}
{{- $image := .Values.image -}}
{{- $repository := $image.repository -}}
{{- with .Values.imageRegistry -}}
{{- $parts := splitList "/" $repository -}}
{{- $hasRegistry := and (gt (len $parts) 1) (regexMatch "[.:]|^localhost$" (first $parts)) -}}
{{- $path := ternary (rest $parts | join "/") $repository $hasRegistry -}}
{{- $repository = printf "%s/%s" (trimSuffix "/" .) $path -}}
{{- end -}}
{{- if $image.digest -}}
{{- printf "%s@%s" $repository $image.digest -}}
{{- else -}}
{{- printf "%s:%s" $repository ($image.tag | default .Chart.AppVersion) -}}
{{- end -}}
{{- end }}

{{- /* Name of the PriorityClass of Torpor's pods, or nothing. */ -}}
{{- define "torpor.priorityClassName" -}}
{{- with .Values.priorityClass.name }}
priorityClassName: {{ . | quote }}
{{- end }}
{{- end }}

{{- /* How a Deployment is rolled out. A process that waits for leadership counts as ready, and so does, for its first seconds, one
that cannot reach the API server: a pod must have been ready for longer before the next one is replaced. */ -}}
{{- define "torpor.rollout" -}}
replicas: {{ .replicas }}
revisionHistoryLimit: 3
minReadySeconds: 12
progressDeadlineSeconds: 240
strategy:
  type: RollingUpdate
  rollingUpdate: {maxSurge: 1, maxUnavailable: 0}
{{- end }}

{{- /* Metadata of a pod template: (list $ "operator" .Values.operator). No chart version, so that a chart that changes
nothing about a pod replaces none. */ -}}
{{- define "torpor.podMetadata" -}}
{{- $root := index . 0 -}}
{{- $component := index . 1 -}}
{{- $values := index . 2 -}}
{{- $annotations := dict -}}
{{- if and $root.Values.catalog (ne $component "gateway") -}}
{{- $_ := set $annotations "torpor.dev/catalog-checksum" (include "torpor.catalog" $root | sha256sum) -}}
{{- end -}}
{{- $annotations = merge $annotations $values.podAnnotations -}}
{{- with $annotations -}}
annotations:
  {{- toYaml . | nindent 2 }}
{{ end -}}
labels:
  {{- include "torpor.selector" $component | nindent 2 }}
  app.kubernetes.io/instance: {{ $root.Release.Name | quote }}
  app.kubernetes.io/version: {{ $root.Chart.AppVersion | quote }}
  app.kubernetes.io/part-of: torpor
  app.kubernetes.io/managed-by: {{ $root.Release.Service }}
  {{- range $key, $value := $values.podLabels }}
  {{- if hasPrefix "app.kubernetes.io/" $key }}
  {{- fail (printf "%s.podLabels: %s is the chart's own" $component $key) }}
  {{- end }}
  {{ $key }}: {{ $value | quote }}
  {{- end }}
{{- end }}

{{- /* What all of Torpor's pods have in common, but their containers and volumes: (list $ "operator" .Values.operator). */ -}}
{{- define "torpor.podSpec" -}}
{{- $root := index . 0 -}}
{{- $component := index . 1 -}}
{{- $values := index . 2 -}}
serviceAccountName: torpor-{{ $component }}
automountServiceAccountToken: true
enableServiceLinks: false
terminationGracePeriodSeconds: {{ $values.terminationGracePeriodSeconds }}
{{- include "torpor.priorityClassName" $root }}
{{- include "torpor.pullSecrets" $root }}
securityContext:
  {{- include "torpor.podSecurity" . | nindent 2 }}
{{- with $values.nodeSelector }}
nodeSelector:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with $values.tolerations }}
tolerations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with $values.affinity }}
affinity:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with $values.topologySpread.topologyKeys }}
topologySpreadConstraints:
{{- range $key := . }}
- topologyKey: {{ $key | quote }}
  maxSkew: 1
  whenUnsatisfiable: {{ $values.topologySpread.whenUnsatisfiable }}
  labelSelector:
    matchLabels:
      {{- include "torpor.selector" $component | nindent 6 }}
  # Each version is spread for itself, or the pods that a rollout is about to replace would count.
  matchLabelKeys: [pod-template-hash]
{{- end }}
{{- end }}
{{- end }}

{{- define "torpor.pullSecrets" -}}
{{- with .Values.imagePullSecrets }}
imagePullSecrets:
{{- range . }}
- name: {{ . | quote }}
{{- end }}
{{- end }}
{{- end }}

{{- /* The Pod Security level `restricted`, for pods and for containers. The group lets the user read mounted Secrets. */ -}}
{{- define "torpor.podSecurity" -}}
runAsNonRoot: true
runAsUser: 65532
runAsGroup: 65532
fsGroup: 65532
seccompProfile: {type: RuntimeDefault}
{{- end }}

{{- define "torpor.containerSecurity" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities: {drop: [ALL]}
{{- end }}

{{- /* Image, probes and resources of a container: (list $ .Values.operator). */ -}}
{{- define "torpor.container" -}}
{{- $root := index . 0 -}}
{{- $values := index . 1 -}}
image: {{ include "torpor.image" $root | quote }}
imagePullPolicy: {{ $root.Values.image.pullPolicy }}
securityContext:
  {{- include "torpor.containerSecurity" . | nindent 2 }}
resources:
  {{- toYaml $values.resources | nindent 2 }}
livenessProbe:
  httpGet: {path: /livez, port: probes}
  periodSeconds: 20
  timeoutSeconds: 5
  failureThreshold: 3
readinessProbe:
  httpGet: {path: /readyz, port: probes}
  periodSeconds: 5
  timeoutSeconds: 5
  failureThreshold: 2
{{- end }}

{{- /* An address to listen on: (list $ 8080). */ -}}
{{- define "torpor.listen" -}}
{{- $host := (index . 0).Values.bindAddress -}}
{{- printf "%s:%v" (contains ":" $host | ternary (printf "[%s]" $host) $host) (index . 1) -}}
{{- end }}

{{- /* Environment that every component has: (list $ .Values.operator). */ -}}
{{- define "torpor.env" -}}
{{- $root := index . 0 -}}
{{- $values := index . 1 -}}
- {name: TORPOR_PROBE_ADDRESS, value: {{ include "torpor.listen" (list $root 8080) | quote }}}
- {name: TORPOR_LOG_FORMAT, value: {{ $root.Values.log.format }}}
{{- with $root.Values.log.filter }}
- {name: RUST_LOG, value: {{ . | quote }}}
{{- end }}
{{- range $values.extraEnv }}
{{- if or (hasPrefix "TORPOR_" .name) (eq .name "RUST_LOG") }}
{{- fail (printf "extraEnv: %s has a value of its own in this chart; see README.md" .name) }}
{{- end }}
{{- if and (hasKey . "value") (hasKey . "valueFrom") }}
{{- fail (printf "extraEnv: %s has both value and valueFrom" .name) }}
{{- end }}
{{ toYaml (list .) }}
{{- end }}
{{- end }}

{{- /* Environment of the components that elect a leader and read the catalogue. */ -}}
{{- define "torpor.leaderEnv" -}}
- {name: TORPOR_LEASE_NAMESPACE, value: {{ .Release.Namespace | quote }}}
- {name: TORPOR_LEASE_SECONDS, value: {{ .Values.leaseSeconds | int64 | quote }}}
- name: TORPOR_POD_UID
  valueFrom: {fieldRef: {fieldPath: metadata.uid}}
{{- if .Values.catalog }}
- {name: TORPOR_CATALOG, value: /etc/torpor/catalog/tiers.yaml}
{{- end }}
{{- end }}

{{- define "torpor.catalog" -}}
{{ toYaml .Values.catalog }}
{{- end }}

{{- /* Environment variables of a dict, those with a value. */ -}}
{{- define "torpor.optionalEnv" -}}
{{- range $name, $value := . }}
{{- with $value }}
- {name: {{ $name }}, value: {{ . | quote }}}
{{- end }}
{{- end }}
{{- end }}

{{- /* Labels of the namespace of the name servers. The default stands here: Helm would merge one of values.yaml with the
labels that are given, and a namespace must have all of them. */ -}}
{{- define "torpor.dnsNamespaceLabels" -}}
{{- .Values.networkPolicy.dns.namespaceLabels | default (dict "kubernetes.io/metadata.name" "kube-system") | toYaml }}
{{- end }}

{{- /* Labels as a flag takes them: `key=value`, separated by commas. */ -}}
{{- define "torpor.labelList" -}}
{{- $pairs := list }}
{{- range $key, $value := . }}
{{- $pairs = append $pairs (printf "%s=%s" $key $value) }}
{{- end }}
{{- join "," $pairs }}
{{- end }}
