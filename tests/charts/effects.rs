//! What single values make of the chart.

use serde_json::{Value, json};

use super::{object, objects, ran, read};

/// The chart with values as `--set-json` takes them.
fn with(values: &[&str]) -> Vec<Value> {
    let mut arguments = vec!["template", "torpor", "charts/torpor", "--namespace", "torpor-system"];
    arguments.extend(values.iter().flat_map(|value| ["--set-json", value]));
    objects(&ran(&arguments).unwrap_or_else(|error| panic!("{values:?}: {error}")))
}

fn container<'a>(objects: &'a [Value], component: &str) -> &'a Value {
    let deployment = object(objects, "Deployment", &format!("torpor-{component}"));
    &deployment["spec"]["template"]["spec"]["containers"][0]
}

/// The gateway answers on where a load balancer is slow; nobody else has one in front.
#[test]
fn only_the_gateway_sleeps_before_its_end() {
    let lifecycles = |objects: &[Value]| {
        ["operator", "hibernator", "gateway"].map(|component| container(objects, component)["lifecycle"].clone())
    };
    assert_eq!(lifecycles(&with(&[])), [Value::Null, Value::Null, Value::Null]);
    let sleep = json!({"preStop": {"sleep": {"seconds": 22}}});
    assert_eq!(lifecycles(&with(&["gateway.preStopSleepSeconds=22"])), [Value::Null, Value::Null, sleep]);
}

/// Helm merges maps: a default in values.yaml would be asked for besides.
#[test]
fn labels_of_the_name_servers_take_the_place_of_the_default() {
    let default = json!({"kubernetes.io/metadata.name": "kube-system"});
    let other = json!({"example.com/name-servers": "yes"});
    for (given, expected) in [("{}", &default), (r#"{"example.com/name-servers":"yes"}"#, &other)] {
        let objects = with(&[&format!("networkPolicy.dns.namespaceLabels={given}")]);
        let policies = objects.iter().filter(|object| object["kind"] == "NetworkPolicy");
        let selectors =
            policies.map(|policy| &policy["spec"]["egress"][0]["to"][0]["namespaceSelector"]["matchLabels"]);
        assert_eq!(selectors.collect::<Vec<_>>(), [expected; 4], "three programs and `helm test`, with {given}");
        let variables = container(&objects, "operator")["env"].as_array().expect("variables");
        let flag = variables.iter().find(|variable| variable["name"] == "TORPOR_DNS_NAMESPACE_LABELS");
        let (key, value) = flag.and_then(|flag| flag["value"].as_str()?.split_once('=')).expect("a label");
        assert_eq!(&json!({key: value}), expected, "of tenants, with {given}");
    }
}

#[test]
fn everybody_reaches_the_gateway_unless_somebody_is_named() {
    let from = |given: &str| {
        let objects = with(&[&format!("networkPolicy.gatewayFrom={given}")]);
        let rules = &object(&objects, "NetworkPolicy", "torpor-gateway")["spec"]["ingress"];
        let mut rules = rules.as_array().expect("rules").iter();
        let door = rules.find(|rule| rule["ports"][0]["port"] == 8090).expect("a rule of the gateway's port");
        door["from"].clone()
    };
    for nobody in ["{}", r#"{"namespaces":[]}"#, r#"{"namespaces":[],"cidrs":[]}"#] {
        assert_eq!(from(nobody), Value::Null, "{nobody}");
    }
    assert_eq!(from(r#"{"namespaces":[],"cidrs":["192.0.2.0/24"]}"#)[0], json!({"ipBlock": {"cidr": "192.0.2.0/24"}}));
}

/// Two pools of one class agree, though one leaves to the definition what the other writes out.
#[test]
fn a_default_of_pools_can_be_written_out() {
    let definition: Value = serde_yaml::from_str(&read("crds/workerpools.torpor.dev.yaml")).expect("YAML");
    let spec = &definition["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"];
    let default = &spec["properties"]["priority"]["properties"]["preemption"]["default"];
    let short = json!({"class": "shared", "value": 1000});
    let long = json!({"class": "shared", "value": 1000, "preemption": default});
    for (first, second) in [(&short, &long), (&long, &short)] {
        let pools = json!([
            {"name": "a", "tiers": ["free"], "priority": first},
            {"name": "b", "tiers": ["basic"], "priority": second},
        ]);
        let objects = with(&[&format!("workerPools={pools}")]);
        assert_eq!(objects.iter().filter(|object| object["kind"] == "WorkerPool").count(), 2);
    }
}

/// Who has chosen to run no hibernator, or no gateway, passes `helm test` without.
#[test]
fn helm_test_asks_those_that_are_to_run() {
    let asked = |values: &[&str]| {
        let objects = with(values);
        let arguments = &object(&objects, "Pod", "torpor-check")["spec"]["containers"][0]["args"];
        ["operator", "hibernator", "gateway"].map(|component| {
            let of = format!("//torpor-{component}");
            let arguments = arguments.as_array().expect("arguments").iter();
            arguments.filter(|argument| argument.as_str().is_some_and(|text| text.contains(&of))).count()
        })
    };
    assert_eq!(asked(&[]), [1, 1, 2]);
    assert_eq!(asked(&["hibernator.replicas=0"]), [1, 0, 2]);
    assert_eq!(asked(&["gateway.replicas=0"]), [1, 1, 0]);
}
