use super::*;

fn all_touched() -> Metrics {
    let metrics = Metrics::new("1.2.3");
    metrics.reconciled("Tenant", "Done", Duration::from_millis(3));
    metrics.api_write("patch", "StatefulSet");
    metrics.put_back("Service");
    metrics.watch_error("Secret");
    metrics.watch_up("Tenant");
    metrics.set_tenants("gold", "Running", 7);
    metrics.set_longest_unready("WakingUp", 90);
    metrics.set_in_backoff("Tenant", 2);
    metrics.event_published("Hibernated");
    metrics.event_lost("Hibernated");
    metrics.set_breaker("TooMany", true);
    metrics.set_due(3);
    metrics.decided("BotsStopped");
    metrics.warned("delivered");
    metrics.answered("wake", 202, Duration::from_millis(3));
    metrics.activity(true);
    metrics.woke(Duration::from_secs(17));
    metrics.clone().became_leader();
    metrics
}

#[test]
fn what_is_served_is_what_is_described() {
    let page = all_touched().encode();
    let described = describe();
    for Description { name, kind, labels, help } in &described {
        let family = name.trim_end_matches("_total").trim_end_matches("_info");
        assert!(page.contains(&format!("# HELP {family} {help}.\n")), "{name}: help in\n{page}");
        assert!(page.contains(&format!("# TYPE {family} {kind}\n")), "{name}: type in\n{page}");
        let sample = if *kind == "histogram" { format!("{name}_count") } else { name.to_string() };
        let line =
            page.lines().find(|line| line.strip_prefix(&sample).is_some_and(|rest| rest.starts_with(['{', ' '])));
        let line = line.unwrap_or_else(|| panic!("no sample of {name} in\n{page}"));
        let found: Vec<_> =
            line.split(['{', ',', '}']).filter_map(|part| part.split_once("=\"").map(|(label, _)| label)).collect();
        assert_eq!(&found, labels, "{line}");
    }
    assert_eq!(page.matches("# TYPE").count(), described.len());
    assert!(page.ends_with("# EOF\n"));
}

#[test]
fn values_are_those_that_were_given() {
    let page = all_touched().encode();
    for line in [
        r#"torpor_build_info{version="1.2.3"} 1"#,
        r#"torpor_reconciles_total{kind="Tenant",outcome="Done"} 1"#,
        r#"torpor_reconcile_duration_seconds_bucket{le="0.005",kind="Tenant"} 1"#,
        r#"torpor_reconcile_duration_seconds_bucket{le="0.0025",kind="Tenant"} 0"#,
        r#"torpor_watch_up{kind="Secret"} 0"#,
        r#"torpor_watch_up{kind="Tenant"} 1"#,
        r#"torpor_tenants{tier="gold",state="Running"} 7"#,
        "torpor_leader 1",
        r#"torpor_wake_seconds_bucket{le="20.0"} 1"#,
        r#"torpor_wake_seconds_bucket{le="10.0"} 0"#,
    ] {
        assert!(page.lines().any(|found| found == line), "{line} in\n{page}");
    }
}

#[test]
fn a_watch_is_down_until_it_delivers_again() {
    let metrics = Metrics::new("1");
    metrics.watch_up("Tenant");
    metrics.watch_error("Tenant");
    assert!(metrics.encode().contains("torpor_watch_up{kind=\"Tenant\"} 0\n"));
    metrics.watch_up("Tenant");
    assert!(metrics.encode().contains("torpor_watch_up{kind=\"Tenant\"} 1\n"));
}

#[test]
#[expect(clippy::disallowed_methods, reason = "compares with a file of the repository")]
fn the_reference_is_fresh() {
    let file = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/metrics.md");
    if std::env::var_os("UPDATE_GOLDEN").is_some() {
        std::fs::write(file, reference()).expect("docs/metrics.md can be written");
    }
    let found = std::fs::read_to_string(file).unwrap_or_default();
    assert_eq!(found, reference(), "docs/metrics.md is stale: run `make generate`");
}
