// The definitions of the Prometheus operator, against which the chart's monitors and rules are checked. Nothing is built.
module torpor.dev/monitoring

go 1.26.0

require github.com/prometheus-operator/prometheus-operator v0.85.0
