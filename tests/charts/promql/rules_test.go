// Package promql runs the chart's alerts in Prometheus' own parser and engine.
package promql

import (
	"context"
	"log/slog"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/common/model"
	"github.com/prometheus/prometheus/model/rulefmt"
	"github.com/prometheus/prometheus/promql"
	"github.com/prometheus/prometheus/promql/parser"
	"github.com/prometheus/prometheus/promql/promqltest"
)

const rulesFile = "../../../charts/torpor/files/rules.yaml"

// What is scraped, once a minute; when it is looked at; and on which label sets the alert fires then.
type situation struct {
	name   string
	series []string
	at     time.Duration
	fires  []string
}

// Labels of the scrape, as the monitors of the chart set them.
func of(component string) string {
	return `job="torpor", component="` + component + `"`
}

func leader(pod, values string) string {
	return `torpor_leader{` + of("operator") + `, pod="` + pod + `"} ` + values
}

func longest(reason, values string) string {
	return `torpor_longest_unready_seconds{` + of("operator") + `, reason="` + reason + `"} ` + values
}

func tenants(state, values string) string {
	return `torpor_tenants{` + of("operator") + `, tier="basic", state="` + state + `"} ` + values
}

func rolling(values string) string {
	return `torpor_tenants_rolling{` + of("operator") + `} ` + values
}

var situations = map[string][]situation{
	"TorporOperatorLeaders": {
		{"one leads, one stands by", []string{leader("a", "1x20"), leader("b", "0x20")}, 10 * time.Minute, nil},
		{"nobody leads", []string{leader("a", "0x20"), leader("b", "0x20")}, 10 * time.Minute, []string{"{}"}},
		{"two lead", []string{leader("a", "1x20"), leader("b", "1x20")}, 10 * time.Minute, []string{"{}"}},
		{"nobody is there", []string{`torpor_leader{` + of("hibernator") + `} 1x20`}, 10 * time.Minute, []string{"{}"}},
		{"a rollout", []string{leader("a", "1x8 stale"), leader("b", "0x9 1x10")}, 10 * time.Minute, nil},
	},
	"TorporHibernatorLeaders": {
		{"one leads", []string{`torpor_leader{` + of("hibernator") + `} 1x30`}, 20 * time.Minute, nil},
		{"another program leads", []string{leader("a", "1x30")}, 20 * time.Minute, []string{"{}"}},
	},
	"TorporGatewayDown": {
		{"one of two is up", []string{`up{` + of("gateway") + `, pod="a"} 0x20`, `up{` + of("gateway") + `, pod="b"} 1x20`}, 10 * time.Minute, nil},
		{"none is up", []string{`up{` + of("gateway") + `, pod="a"} 0x20`}, 10 * time.Minute, []string{"{}"}},
		{"none is known", []string{`up{job="other"} 1x20`}, 10 * time.Minute, []string{"{}"}},
	},
	"TorporWatchBroken": {
		{"all deliver", []string{`torpor_watch_up{` + of("operator") + `, kind="Tenant"} 1x20`}, 10 * time.Minute, nil},
		{"one is broken", []string{`torpor_watch_up{` + of("operator") + `, kind="Tenant"} 1x20`, `torpor_watch_up{` + of("operator") + `, kind="Service"} 0x20`},
			10 * time.Minute, []string{`{component="operator", kind="Service"}`}},
		{"one was broken for a moment", []string{`torpor_watch_up{` + of("operator") + `, kind="Tenant"} 1x7 0x1 1x10`}, 12 * time.Minute, nil},
	},
	"TorporObjectsInBackoff": {
		{"none", []string{`torpor_objects_in_backoff{` + of("operator") + `, kind="Tenant"} 0x60`}, 30 * time.Minute, nil},
		{"some", []string{`torpor_objects_in_backoff{` + of("operator") + `, kind="Tenant"} 3x60`}, 30 * time.Minute, []string{`{kind="Tenant"}`}},
	},
	"TorporPassesFail": {
		{"all go well", []string{`torpor_reconciles_total{` + of("operator") + `, kind="Tenant", outcome="done"} 0+10x60`}, 40 * time.Minute, nil},
		{"one in eleven fails", []string{`torpor_reconciles_total{` + of("operator") + `, kind="Tenant", outcome="done"} 0+10x60`,
			`torpor_reconciles_total{` + of("operator") + `, kind="Tenant", outcome="transient"} 0+1x60`}, 40 * time.Minute, nil},
		{"half fail", []string{`torpor_reconciles_total{` + of("operator") + `, kind="BotFleet", outcome="done"} 0+10x60`,
			`torpor_reconciles_total{` + of("operator") + `, kind="BotFleet", outcome="refused"} 0+10x60`}, 40 * time.Minute, []string{`{kind="BotFleet"}`}},
		{"nothing happens", []string{`torpor_reconciles_total{` + of("operator") + `, kind="Tenant", outcome="transient"} 5x60`}, 40 * time.Minute, nil},
	},
	"TorporChangesCollide": {
		{"nobody", []string{`torpor_objects_put_back_total{` + of("operator") + `, kind="Service"} 7x120`}, 90 * time.Minute, nil},
		{"somebody labelled all by mistake", []string{`torpor_objects_put_back_total{` + of("operator") + `, kind="Service"} 0x10 900x110`}, 90 * time.Minute, nil},
		{"another controller each ten minutes", []string{`torpor_objects_put_back_total{` + of("operator") + `, kind="Service"} 0x10 1x10 2x10 3x10 4x10 5x10 6x10 7x10 8x10 9x10`},
			90 * time.Minute, []string{`{kind="Service"}`}},
	},
	"TorporTenantsStalled": {
		{"none", []string{`torpor_tenants{` + of("operator") + `, tier="free", state="stalled"} 0x30`, `torpor_tenants{` + of("operator") + `, tier="free", state="awake"} 9x30`}, 20 * time.Minute, nil},
		{"one", []string{`torpor_tenants{` + of("operator") + `, tier="pro", state="stalled"} 1x30`}, 20 * time.Minute, []string{`{tier="pro"}`}},
	},
	"TorporTenantsNotReady": {
		{"a few of many", []string{tenants("working", "40x40"), tenants("awake", "900x40"), tenants("asleep", "60x40"), rolling("0x40")}, 30 * time.Minute, nil},
		{"a catalogue is rolled out", []string{tenants("working", "950x90"), tenants("awake", "50x90"), rolling("940x90")}, 80 * time.Minute, nil},
		{"five of ten", []string{tenants("working", "5x40"), tenants("awake", "5x40"), rolling("0x40")}, 30 * time.Minute, nil},
		{"nobody is there", []string{tenants("working", "0x40"), rolling("0x40")}, 30 * time.Minute, nil},
		{"a zone has gone", []string{tenants("working", "200x40"), tenants("awake", "300x40"), tenants("asleep", "500x40"), rolling("0x40")}, 30 * time.Minute, []string{"{}"}},
	},
	"TorporStopOverdue": {
		{"none", []string{longest("StopOverdue", "0x20"), longest("WakingUp", "60+60x20")}, 10 * time.Minute, nil},
		{"for a moment", []string{longest("StopOverdue", "0x8 90 0x10")}, 10 * time.Minute, nil},
		{"a lost node", []string{longest("StopOverdue", "60+60x20")}, 10 * time.Minute, []string{"{}"}},
	},
	"TorporWakeStuck": {
		{"always somebody", []string{longest("WakingUp", "40 80 20 100 60 300 10 70 50 90 30")}, 8 * time.Minute, nil},
		{"somebody goes to sleep for long", []string{longest("GoingToSleep", "60+60x30")}, 20 * time.Minute, nil},
		{"the same one", []string{longest("WakingUp", "60+60x30")}, 20 * time.Minute, []string{"{}"}},
	},
	"TorporBreakerOpen": {
		{"closed", []string{`torpor_breaker_open{` + of("hibernator") + `, reason="TooMany"} 0x20`}, 10 * time.Minute, nil},
		{"open", []string{`torpor_breaker_open{` + of("hibernator") + `, reason="TooMany"} 1x20`, `torpor_breaker_open{` + of("hibernator") + `, reason="ByHand"} 0x20`},
			10 * time.Minute, []string{`{reason="TooMany"}`}},
	},
	"TorporWarningsFail": {
		{"delivered", []string{`torpor_warnings_total{` + of("hibernator") + `, result="delivered"} 0+1x90`}, 80 * time.Minute, nil},
		{"failed long ago", []string{`torpor_warnings_total{` + of("hibernator") + `, result="failed"} 0 3x90`}, 80 * time.Minute, nil},
		{"fail", []string{`torpor_warnings_total{` + of("hibernator") + `, result="failed"} 0+1x90`}, 80 * time.Minute, []string{"{}"}},
	},
	"TorporGatewayErrors": {
		{"well", []string{`torpor_http_requests_total{` + of("gateway") + `, route="activity", status="204"} 0+60x40`}, 30 * time.Minute, nil},
		{"strangers are refused", []string{`torpor_http_requests_total{` + of("gateway") + `, route="wake", status="401"} 0+60x40`}, 30 * time.Minute, nil},
		{"programs wait at the page", []string{`torpor_http_requests_total{` + of("gateway") + `, route="page", status="503"} 0+60x40`,
			`torpor_http_requests_total{` + of("gateway") + `, route="activity", status="204"} 0+60x40`}, 30 * time.Minute, nil},
		{"one in eleven fails", []string{`torpor_http_requests_total{` + of("gateway") + `, route="activity", status="204"} 0+60x40`,
			`torpor_http_requests_total{` + of("gateway") + `, route="wake", status="503"} 0+6x40`}, 30 * time.Minute, []string{"{}"}},
	},
	"TorporWakesSlow": {
		{"half a minute", []string{`torpor_wake_seconds_bucket{` + of("operator") + `, le="30"} 0+2x120`, `torpor_wake_seconds_bucket{` + of("operator") + `, le="900"} 0+2x120`,
			`torpor_wake_seconds_bucket{` + of("operator") + `, le="+Inf"} 0+2x120`}, 100 * time.Minute, nil},
		{"a quarter of an hour", []string{`torpor_wake_seconds_bucket{` + of("operator") + `, le="300"} 0x120`, `torpor_wake_seconds_bucket{` + of("operator") + `, le="900"} 0+2x120`,
			`torpor_wake_seconds_bucket{` + of("operator") + `, le="+Inf"} 0+2x120`}, 100 * time.Minute, []string{"{}"}},
	},
}

func TestAlerts(t *testing.T) {
	groups, problems := rulefmt.ParseFile(rulesFile, false, model.UTF8Validation, parser.NewParser(parser.Options{}), slog.Default())
	for _, problem := range problems {
		t.Error(problem)
	}
	if t.Failed() {
		return
	}
	known := map[string]bool{}
	for _, group := range groups.Groups {
		for _, rule := range group.Rules {
			known[rule.Alert] = true
			if rule.Annotations["summary"] == "" || rule.Annotations["description"] == "" {
				t.Errorf("%s does not say what to do", rule.Alert)
			}
			switch rule.Labels["severity"] {
			case "critical", "warning", "info":
			default:
				t.Errorf("%s has no severity", rule.Alert)
			}
			silent, loud := false, false
			for _, situation := range situations[rule.Alert] {
				check(t, rule, situation)
				silent = silent || len(situation.fires) == 0
				loud = loud || len(situation.fires) > 0
			}
			if !silent || !loud {
				t.Errorf("%s needs a situation in which it fires and one in which it does not", rule.Alert)
			}
		}
	}
	for alert := range situations {
		if !known[alert] {
			t.Errorf("there is no alert %s", alert)
		}
	}
}

func check(t *testing.T, rule rulefmt.Rule, situation situation) {
	t.Run(rule.Alert+"/"+situation.name, func(t *testing.T) {
		storage := promqltest.LoadedStorage(t, "load 1m\n  "+strings.Join(situation.series, "\n  ")+"\n")
		engine := promqltest.NewTestEngine(t, false, 5*time.Minute, promqltest.DefaultMaxSamplesPerQuery)
		// An alert fires on the label sets that its expression has given at every minute since `for`.
		lasted := map[string]int{}
		rounds := 0
		for at := situation.at - time.Duration(rule.For); at <= situation.at; at += time.Minute {
			rounds++
			query, err := engine.NewInstantQuery(context.Background(), storage, nil, rule.Expr, time.Unix(0, 0).Add(at))
			if err != nil {
				t.Fatal(err)
			}
			vector, err := query.Exec(context.Background()).Vector()
			if err != nil {
				t.Fatal(err)
			}
			count(vector, lasted)
			query.Close()
		}
		fires := map[string]bool{}
		for labels, times := range lasted {
			if times == rounds {
				fires[labels] = true
			}
		}
		for _, labels := range situation.fires {
			if !fires[labels] {
				t.Errorf("does not fire on %s, but on %v", labels, fires)
			}
			delete(fires, labels)
		}
		if len(fires) > 0 {
			t.Errorf("fires on %v", fires)
		}
	})
}

func count(vector promql.Vector, lasted map[string]int) {
	for _, sample := range vector {
		lasted[sample.Metric.String()]++
	}
}
