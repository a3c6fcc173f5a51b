//! Properties of whole plans.

use std::collections::{BTreeMap, BTreeSet};

use k8s_openapi::api::core::v1::{Container, EmptyDirVolumeSource, PodSpec};
use serde_json::json;

use super::cost::{pods, size};
use super::*;
use crate::api::bot_fleet::MAX_FLEET_NAME;
use crate::api::tenant::MAX_TENANT_NAME;
use crate::api::{BotFleet, Tenant, Tier};
use crate::domain::catalog::Catalog;
use crate::domain::names::{self, annotation, label};
use crate::domain::quantity::{Bytes, Cpu, Size};
use crate::domain::stage::Stage;
use crate::validate::{self, Desired, FleetFacts, PoolFacts, allot};
use settings::{Dns, UserNamespaces, VolumeAccess};

const CONFIG: &str = "script_file_name: simple_pmm_example.py\n";

/// A tenant with two fleets that together want all bots of the tier.
fn manifest(name: &str, tier: Tier) -> Tenant {
    let bots = Catalog::default().tier(tier).max_bots;
    let fleet = |name: &str, replicas: i32| json!({"name": name, "replicas": replicas, "strategy": {"kind": "script", "config": CONFIG}});
    let mut tenant: Tenant = serde_json::from_value(json!({
        "apiVersion": "torpor.dev/v1alpha1", "kind": "Tenant", "metadata": {"name": name},
        "spec": {"tier": tier, "fleets": [fleet("a", bots / 2), fleet("b", bots - bots / 2)]},
    }))
    .expect("a Tenant");
    tenant.metadata.uid = Some("1234".to_owned());
    tenant
}

fn validated(tenant: &Tenant, pools: &[PoolFacts]) -> ValidatedTenant {
    validate::tenant(tenant, &Catalog::default(), pools).expect("valid")
}

fn fleets(tenant: &ValidatedTenant) -> Vec<ValidatedFleet> {
    let tier = tenant.fleet_context();
    let facts: Vec<FleetFacts> =
        tenant.fleets.iter().map(|(name, spec)| FleetFacts::new(name.clone(), None, spec, &tier)).collect();
    let shares = allot(tier.max_bots, tier.room(), &facts);
    let plan = |(name, spec): &(String, crate::api::BotFleetSpec)| {
        let mut fleet = BotFleet::new(name, spec.clone());
        fleet.metadata.uid = Some("5678".to_owned());
        let desired = Desired { replicas: shares[name].bots };
        validate::fleet(&fleet, &tier, desired, CONFIG).expect("valid")
    };
    tenant.fleets.iter().map(plan).collect()
}

/// The objects of a tenant and of its fleets.
fn everything(validated: &ValidatedTenant, stage: Stage, settings: &Settings) -> Vec<Child> {
    let parts = Parts::of(stage);
    let mut children = tenant(validated, parts, settings);
    for planned in fleets(validated) {
        children.extend(fleet(&planned, parts, settings));
    }
    children
}

fn plan_of(tier: Tier, stage: Stage) -> Vec<Child> {
    everything(&validated(&manifest("alice", tier), &[]), stage, &Settings::default())
}

fn cases() -> impl Iterator<Item = (Tier, Stage)> {
    Tier::ALL.into_iter().flat_map(|tier| Stage::ALL.into_iter().map(move |stage| (tier, stage)))
}

fn containers(pod: &PodSpec) -> impl Iterator<Item = &Container> {
    pod.containers.iter().chain(pod.init_containers.iter().flatten())
}

fn limits(pod: &PodSpec) -> Size {
    let limits =
        |container: &Container| size(container.resources.as_ref().and_then(|r| r.limits.as_ref()).expect("limits"));
    pod.containers.iter().map(limits).sum()
}

fn annotation_of<'a>(child: &'a Child, key: &str) -> Option<&'a String> {
    child.metadata().annotations.as_ref().and_then(|annotations| annotations.get(key))
}

#[test]
fn every_pod_is_restricted() {
    for (tier, stage) in cases() {
        for (_, pod) in plan_of(tier, stage).iter().filter_map(pods) {
            assert_eq!(pod.host_users, Some(false));
            assert_eq!(pod.automount_service_account_token, Some(false));
            assert_eq!(pod.enable_service_links, Some(false));
            assert_eq!((pod.host_network, pod.host_pid, pod.host_ipc), (None, None, None));
            assert!(pod.priority_class_name.is_some() && pod.affinity.is_some() && pod.tolerations.is_some());
            let security = pod.security_context.as_ref().expect("security");
            assert_eq!(security.run_as_non_root, Some(true));
            assert!(security.run_as_user.is_some_and(|user| user > 0));
            assert_eq!(security.seccomp_profile.as_ref().expect("seccomp").type_, "RuntimeDefault");
            for volume in pod.volumes.iter().flatten() {
                let kinds = [volume.config_map.is_some(), volume.secret.is_some(), volume.empty_dir.is_some()];
                assert_eq!(kinds.iter().filter(|is| **is).count(), 1, "{}", volume.name);
                assert!(volume.empty_dir.as_ref().is_none_or(|dir| dir.size_limit.is_some()));
            }
            for container in containers(pod) {
                let security = container.security_context.as_ref().expect("security");
                assert_eq!(security.allow_privilege_escalation, Some(false));
                assert_eq!(security.read_only_root_filesystem, Some(true));
                assert_eq!(security.privileged, None);
                let capabilities = security.capabilities.as_ref().expect("capabilities");
                assert_eq!((capabilities.drop.as_deref(), &capabilities.add), (Some(&["ALL".to_owned()][..]), &None));
                let resources = container.resources.as_ref().expect("resources");
                let both = resources.requests.iter().chain(&resources.limits).map(size);
                assert!(both.clone().count() == 2 && both.into_iter().all(|size| size.cpu.0 > 0 && size.memory.0 > 0));
                let secret = |env: &&k8s_openapi::api::core::v1::EnvVar| {
                    env.value_from.as_ref().is_some_and(|from| from.secret_key_ref.is_some())
                };
                let secrets = container.env.iter().flatten().filter(secret).map(|env| env.name.as_str());
                assert!(secrets.into_iter().all(|name| name == "HBOT_PASSWORD"));
            }
        }
    }
}

#[test]
fn a_bot_that_is_stopped_while_it_starts_has_that_time_beside_its_own() {
    for child in plan_of(Tier::Pro, Stage::Active).iter().filter(|child| names::is_fleet_workload(child.name())) {
        let Some((_, pod)) = pods(child) else { continue };
        let probes = [&pod.containers[0].startup_probe, &pod.containers[0].liveness_probe];
        let starts =
            probes[0].as_ref().and_then(|probe| Some(i64::from(probe.failure_threshold? * probe.period_seconds?)));
        assert_eq!(pod.termination_grace_period_seconds, starts.map(|seconds| seconds + 120));
        let restarts = probes.map(|probe| probe.as_ref().and_then(|probe| probe.termination_grace_period_seconds));
        assert_eq!(restarts, [Some(120); 2]);
    }
}

#[test]
fn no_bot_can_be_evicted_for_what_it_writes_beside_its_volume() {
    for child in plan_of(Tier::Pro, Stage::Active).iter().filter(|child| names::is_fleet_workload(child.name())) {
        let Some((_, pod)) = pods(child) else { continue };
        let memory = limits(pod).memory;
        let room = pod.volumes.iter().flatten().filter_map(|volume| volume.empty_dir.as_ref());
        let of = |room: &EmptyDirVolumeSource| room.size_limit.as_ref().and_then(|limit| Bytes::parse(&limit.0).ok());
        let sizes: Vec<Bytes> = room.clone().filter_map(of).collect();
        assert_eq!(sizes.len(), 2);
        assert!(room.clone().all(|room| room.medium.as_deref() == Some("Memory")));
        assert!(sizes.iter().map(|size| size.0).sum::<i64>() * 6 < memory.0, "{sizes:?} of {memory}");
    }
    for (memory, room) in [("16Mi", 2), ("5M", 1), ("400M", 47), ("512Mi", 64), ("4Gi", 64)] {
        assert_eq!(fleet::scratch(Bytes::parse(memory).expect("a size")), Bytes::mi(room), "{memory}");
    }
}

#[test]
fn limits_of_the_services_sum_up_to_the_tier() {
    for tier in Tier::ALL {
        let children =
            tenant(&validated(&manifest("alice", tier), &[]), Parts::of(Stage::Active), &Settings::default());
        let sum: Size = children.iter().filter_map(pods).map(|(replicas, pod)| limits(pod) * i64::from(replicas)).sum();
        assert_eq!(sum, Catalog::default().tier(tier).total, "{tier}");
    }
}

fn hard(children: &[Child]) -> BTreeMap<String, String> {
    let quota = children.iter().find_map(|child| {
        let Child::ResourceQuota(quota) = child else { return None };
        quota.spec.as_ref()?.hard.clone()
    });
    quota.expect("a quota").into_iter().map(|(key, quantity)| (key, quantity.0)).collect()
}

#[test]
fn all_pods_fit_into_the_quota() {
    for (tier, stage) in cases() {
        let mut tenant = validated(&manifest("alice", tier), &[]);
        tenant.start_cpu = Cpu(0);
        let children = everything(&tenant, stage, &Settings::default());
        let hard = hard(&children);
        let room = |kind: &str| Size {
            cpu: Cpu::parse(&hard[&format!("{kind}.cpu")]).expect("cpu"),
            memory: Bytes::parse(&hard[&format!("{kind}.memory")]).expect("memory"),
        };
        let backup = Catalog::default().backup_job;
        let used: Size =
            children.iter().filter_map(pods).map(|(replicas, pod)| limits(pod) * i64::from(replicas)).sum();
        assert!((used + backup).fits_into(room("limits")), "{tier} {stage}");
        let requested = cost(&children) + Size { cpu: Cpu(backup.cpu.0 / 2), ..backup };
        assert!(requested.fits_into(room("requests")), "{tier} {stage}");
        if stage == Stage::Active {
            assert_eq!((used + backup, requested), (room("limits"), room("requests")), "exactly: {tier}");
        }
        let running: i32 = children.iter().filter_map(pods).map(|(replicas, _)| replicas).sum();
        assert!(i64::from(running) < hard["pods"].parse::<i64>().expect("a number"));
    }
}

#[test]
fn cpu_that_is_lent_is_not_counted() {
    let mut tenant = validated(&manifest("alice", Tier::Basic), &[]);
    let lends = hard(&everything(&tenant, Stage::Active, &Settings::default()));
    tenant.start_cpu = Cpu(0);
    let mut keeps = hard(&everything(&tenant, Stage::Active, &Settings::default()));
    assert!(keeps.remove("limits.cpu").is_some());
    assert_eq!(lends, keeps);
}

#[test]
fn two_fleets_make_at_most_thirty_objects() {
    let scrapers = Some([("purpose".to_owned(), "monitoring".to_owned())].into());
    let settings = Settings { scraper_namespaces: scrapers, ..Settings::default() };
    let tenant = validated(&manifest("alice", Tier::Premium), &[]);
    for stage in Stage::ALL {
        let children = everything(&tenant, stage, &settings);
        assert!(children.len() <= 30, "{} at {stage}", children.len());
        let policies = children.iter().filter(|child| child.kind() == ChildKind::NetworkPolicy).count();
        assert!(policies <= 6, "{policies}");
    }
}

#[test]
fn objects_are_the_same_at_every_stage_and_stand_in_apply_order() {
    for tier in Tier::ALL {
        let names = |stage| -> Vec<(ChildKind, String)> {
            plan_of(tier, stage).iter().map(|child| (child.kind(), child.name().to_owned())).collect()
        };
        let active = names(Stage::Active);
        assert_eq!(active.iter().collect::<BTreeSet<_>>().len(), active.len(), "every name once");
        assert!(Stage::ALL.into_iter().all(|stage| names(stage) == active));
        let own = tenant(&validated(&manifest("alice", tier), &[]), Parts::of(Stage::Active), &Settings::default());
        assert!(own.is_sorted_by_key(Child::kind));
    }
}

#[test]
fn stages_take_parts_down_in_order() {
    let replicas = |stage: Stage| -> Vec<(String, i32)> {
        let children = plan_of(Tier::Basic, stage);
        children.iter().filter_map(|child| Some((child.name().to_owned(), pods(child)?.0))).collect()
    };
    let expected = |numbers: [i32; 6]| -> Vec<(String, i32)> {
        let names = ["postgres", "redis", "dashboard", "monitoring", "bots-a", "bots-b"];
        names.map(str::to_owned).into_iter().zip(numbers).collect()
    };
    assert_eq!(replicas(Stage::Active), expected([1, 1, 1, 1, 1, 2]));
    assert_eq!(replicas(Stage::BotsStopped), expected([1, 1, 1, 1, 0, 0]));
    assert_eq!(replicas(Stage::ServicesStopped), expected([1, 0, 0, 1, 0, 0]));
    assert_eq!(replicas(Stage::DatabaseOnly), expected([1, 0, 0, 0, 0, 0]));
    let costs = Stage::ALL.map(|stage| cost(&plan_of(Tier::Basic, stage)));
    let mi = |cpu, memory| Size { cpu: Cpu(cpu), memory: Bytes::mi(memory) };
    assert_eq!(costs, [mi(800, 1792), mi(500, 1024), mi(250, 448), mi(25, 128)]);
}

#[test]
fn everything_but_data_and_isolation_goes_with_its_owner() {
    for child in plan_of(Tier::Pro, Stage::Active) {
        let owners = child.metadata().owner_references.as_deref().unwrap_or_default();
        match (child.kind(), owners) {
            (ChildKind::Namespace | ChildKind::Secret | ChildKind::NetworkPolicy, owners) => assert!(owners.is_empty()),
            (kind, [owner]) => {
                let of_fleet = kind != ChildKind::BotFleet && child.name().starts_with("bots-");
                let expected = if of_fleet { ("BotFleet", "5678") } else { ("Tenant", "1234") };
                assert_eq!((owner.kind.as_str(), owner.uid.as_str()), expected, "{}", child.name());
                assert_eq!(owner.controller, Some(true));
            }
            (kind, owners) => panic!("{kind:?} has {} owners", owners.len()),
        }
        if let Child::StatefulSet(set) = &child {
            let claims = set.spec.iter().flat_map(|spec| spec.volume_claim_templates.iter().flatten());
            for claim in claims {
                assert!(claim.metadata.owner_references.is_none());
                let labels = claim.metadata.labels.as_ref().expect("labels");
                assert!(!labels.contains_key(label::TIER), "the tier changes, claim templates cannot");
            }
        }
        let labels = child.metadata().labels.as_ref().expect("labels");
        assert_eq!(labels[label::MANAGED_BY], label::TORPOR);
        assert_eq!(labels[label::TENANT], "alice");
    }
}

/// Restart hashes by the name of the workload.
fn restart_hashes(children: &[Child]) -> BTreeMap<String, String> {
    let hash = |child: &Child| {
        let hash = annotation_of(child, annotation::RESTART_HASH)?;
        let Child::StatefulSet(set) = child else { panic!("{} has a restart hash", child.name()) };
        let template = set.spec.as_ref()?.template.metadata.as_ref()?.annotations.as_ref()?;
        assert_eq!(template.get(annotation::RESTART_HASH), Some(hash));
        Some((child.name().to_owned(), hash.clone()))
    };
    children.iter().filter_map(hash).collect()
}

#[test]
fn only_what_warrants_a_restart_changes_the_hash() {
    let plain = manifest("alice", Tier::Premium);
    let before = restart_hashes(&everything(&validated(&plain, &[]), Stage::Active, &Settings::default()));
    assert_eq!(before.keys().collect::<Vec<_>>(), ["bots-a", "bots-b", "postgres", "redis"]);

    let mut labelled = plain.clone();
    labelled.metadata.labels = Some([("team".to_owned(), "blue".to_owned())].into());
    labelled.metadata.annotations = labelled.metadata.labels.clone();
    labelled.metadata.generation = Some(7);
    labelled.spec.display_name = Some("Alice".to_owned());
    let settings = Settings {
        exporter_image: "other".to_owned(),
        image_registry: Some("mirror.example".to_owned()),
        user_namespaces: UserNamespaces::Off,
        storage_class: Some("fast".to_owned()),
        volume_access: VolumeAccess::ReadWriteOnce,
        image_pull_secrets: vec!["pull".to_owned()],
        dns: Dns { namespace_labels: BTreeMap::new(), addresses: vec![] },
        not_internet: vec!["203.0.113.0/24".parse().expect("a network"), "2001:db8::/32".parse().expect("a network")],
        gateway_namespace: "other".to_owned(),
        scraper_namespaces: Some(BTreeMap::new()),
        ingress_class: Some("other".to_owned()),
    };
    let pools = [PoolFacts { name: "mine".to_owned(), tiers: vec![Tier::Premium] }];
    let other = everything(&validated(&labelled, &pools), Stage::BotsStopped, &settings);
    assert_eq!(restart_hashes(&other), before);

    let changed = |change: &dyn Fn(&mut Tenant)| -> Vec<String> {
        let mut tenant = plain.clone();
        change(&mut tenant);
        let after = restart_hashes(&everything(&validated(&tenant, &[]), Stage::Active, &Settings::default()));
        after.into_iter().filter(|(name, hash)| before[name] != *hash).map(|(name, _)| name).collect()
    };
    assert_eq!(changed(&|tenant| tenant.spec.fleets[0].spec.image = "other".to_owned()), ["bots-a"]);
    assert_eq!(changed(&|tenant| tenant.spec.fleets[1].spec.credentials_secret = Some("keys".to_owned())), ["bots-b"]);
    assert_eq!(changed(&|tenant| tenant.spec.fleets[1].spec.replicas = 1), Vec::<String>::new());
    assert_eq!(changed(&|tenant| tenant.spec.database.storage = "8Gi".to_owned()), Vec::<String>::new());
    let mut sized = plain.clone();
    let size = json!({"resources": {"cpu": "100m", "memory": "128Mi"}});
    sized.spec.database = serde_json::from_value(size.clone()).expect("a database");
    sized.spec.redis = serde_json::from_value(size).expect("Redis");
    sized.spec.fleets.truncate(1);
    sized.spec.fleets[0].spec.replicas = 1;
    let of_tier = |tier: Tier| {
        let mut tenant = sized.clone();
        tenant.spec.tier = tier;
        restart_hashes(&everything(&validated(&tenant, &[]), Stage::Active, &Settings::default()))
    };
    let (pro, premium) = (of_tier(Tier::Pro), of_tier(Tier::Premium));
    assert!(pro.len() == 3 && pro.iter().all(|(name, hash)| premium[name] != *hash), "a new tier moves all of it");
    let asleep = restart_hashes(&everything(&validated(&plain, &[]), Stage::DatabaseOnly, &Settings::default()));
    assert_ne!(asleep["postgres"], before["postgres"], "the least size takes effect");
}

#[test]
fn bots_reach_no_address_of_the_clusters_own() {
    let own = ["203.0.113.0/24", "2001:db8::/32"].map(|net| net.parse().expect("a network"));
    let settings = Settings {
        dns: Dns { addresses: vec!["169.254.10.10/31".parse().expect("a network")], ..Dns::default() },
        not_internet: own.to_vec(),
        ..Settings::default()
    };
    let children = everything(&validated(&manifest("alice", Tier::Basic), &[]), Stage::Active, &settings);
    let egress = |name: &str| -> serde_json::Value {
        let policy = children.iter().find(|child| child.kind() == ChildKind::NetworkPolicy && child.name() == name);
        policy.expect("a policy").to_value()["spec"]["egress"][0]["to"].clone()
    };
    let except = |at: usize| egress("internet")[at]["ipBlock"]["except"].to_string();
    assert!(except(0).contains("203.0.113.0/24") && except(0).contains("10.0.0.0/8"), "{}", except(0));
    assert!(except(1).contains("2001:db8::/32") && !except(1).contains("203.0.113"), "{}", except(1));
    assert_eq!(egress("default")[1]["ipBlock"]["cidr"], "169.254.10.10/31");
}

#[test]
fn a_host_gets_an_ingress_where_there_is_a_class() {
    let mut hosted = manifest("alice", Tier::Basic);
    hosted.spec.dashboard.host = Some("alice.example.com".to_owned());
    let ingresses = |manifest: &Tenant, stage: Stage, class: Option<&str>| -> Vec<serde_json::Value> {
        let settings = Settings { ingress_class: class.map(str::to_owned), ..Settings::default() };
        let children = everything(&validated(manifest, &[]), stage, &settings);
        children.iter().filter(|child| child.kind() == ChildKind::Ingress).map(Child::to_value).collect()
    };
    let [awake] = &ingresses(&hosted, Stage::Active, Some("traefik"))[..] else { panic!("one Ingress") };
    assert_eq!(awake["spec"]["rules"][0]["host"], "alice.example.com");
    assert_eq!(awake["spec"]["ingressClassName"], "traefik");
    let asleep = ingresses(&hosted, Stage::DatabaseOnly, Some("traefik"));
    assert_eq!(asleep[0]["spec"], awake["spec"], "sleep changes no route");
    assert!(ingresses(&hosted, Stage::Active, None).is_empty());
    assert!(ingresses(&manifest("alice", Tier::Basic), Stage::Active, Some("traefik")).is_empty());
}

#[test]
fn longest_names_are_legal() {
    let mut manifest = manifest(&"t".repeat(MAX_TENANT_NAME), Tier::Premium);
    manifest.spec.fleets[0].name = "f".repeat(MAX_FLEET_NAME);
    let children = everything(&validated(&manifest, &[]), Stage::Active, &Settings::default());
    let legal = |name: &str| {
        let ends = |c: Option<char>| c.is_some_and(|c| c.is_ascii_lowercase() || c.is_ascii_digit());
        name.len() <= 63 && ends(name.chars().next()) && ends(name.chars().last())
    };
    for child in &children {
        assert!(legal(child.name()), "{}", child.name());
        let metadata = child.metadata();
        assert!(metadata.labels.iter().flatten().all(|(_, value)| value.len() <= 63));
        if child.kind() == ChildKind::StatefulSet {
            assert!(legal(&format!("{}-0123456789", child.name())), "revision label");
            assert!(legal(&format!("data-{}-199", child.name())), "claim");
        }
    }
}

#[test]
fn every_size_that_validates_can_be_planned() {
    for (tier, stage) in cases() {
        let total = Catalog::default().tier(tier).total;
        for step in 0..200 {
            let memory = Bytes::mi(128 + step * 7);
            let mut manifest = manifest("alice", tier);
            manifest.spec.database.resources = Some(crate::api::Resources {
                cpu: Some(Cpu(10 + step * 3).to_string()),
                memory: Some(memory.to_string()),
            });
            manifest.spec.database.storage = Bytes::mi(512 + step * 4_099).to_string();
            let Ok(validated) = validate::tenant(&manifest, &Catalog::default(), &[]) else { continue };
            let children = everything(&validated, stage, &Settings::default());
            assert!(
                children.iter().filter_map(pods).all(|(_, pod)| limits(pod).fits_into(total) || tier == Tier::Free)
            );
        }
    }
}
