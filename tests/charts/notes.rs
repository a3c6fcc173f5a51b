//! What Helm prints at the end of an installation.

use super::ran;

fn notes(values: &[&str]) -> String {
    let mut arguments = vec!["install", "torpor", "charts/torpor", "--namespace", "torpor-system", "--dry-run=client"];
    arguments.extend(values.iter().flat_map(|value| ["--set-json", value]));
    let text = ran(&arguments).expect("the chart renders");
    text.split_once("\nNOTES:\n").expect("notes").1.to_owned()
}

#[test]
fn notes_name_the_next_command_and_what_is_missing() {
    let bare = notes(&[]);
    for part in [
        "kubectl -n torpor-system rollout status deployment/torpor-operator",
        "helm test torpor -n torpor-system",
        "Missing: there is no WorkerPool",
        "kubectl apply -f examples/pools.yaml",
        "The waiting page is off",
        "Kubernetes Events only",
    ] {
        assert!(bare.contains(part), "{part:?} is not in: {bare}");
    }
    let pool = r#"workerPools=[{"name":"low","tiers":["free"],"priority":{"class":"torpor-low","value":1}}]"#;
    let full = notes(&[pool, r#"gateway.links.secretName="links""#, r#"hibernator.webhook.secretName="hook""#]);
    assert!(full.contains("kubectl get workerpools"), "{full}");
    for part in ["Missing", "The waiting page is off", "Events only", "no TLS"] {
        assert!(!full.contains(part), "{part:?} is in: {full}");
    }
    let open = notes(&["gateway.ingress.enabled=true"]);
    assert!(open.contains("has no TLS of its own"), "{open}");
}
