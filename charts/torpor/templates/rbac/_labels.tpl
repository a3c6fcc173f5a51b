{{/* Labels of what gives rights: (list . "operator") */}}
{{- define "torpor.rbac.labels" -}}
{{- $root := index . 0 -}}
app.kubernetes.io/name: torpor
app.kubernetes.io/component: {{ index . 1 }}
app.kubernetes.io/instance: {{ $root.Release.Name | quote }}
app.kubernetes.io/version: {{ $root.Chart.AppVersion | quote }}
app.kubernetes.io/part-of: torpor
app.kubernetes.io/managed-by: {{ $root.Release.Service }}
{{- end }}
