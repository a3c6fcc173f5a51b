//! Integration tests on a real API server with scheduler, controllers and kwok nodes.
//!
//! `harness = false`: one cluster with one operator is shared by the tests of `SHARED`, which keep apart by
//! unique names and run in parallel. Tests of `ALONE` start a cluster of their own and run one after another.

#![allow(clippy::disallowed_methods, clippy::disallowed_types, clippy::missing_errors_doc)]

mod alone;
mod browser;
mod drift;
mod examples;
mod faults;
mod fleets;
mod gateway;
mod harness;
mod health;
mod hibernation;
mod hindered;
mod image;
mod install;
mod leader;
mod many;
mod own_fleets;
mod pools;
mod privilege;
mod probes;
mod process;
mod rare;
mod receiver;
mod refused;
mod rights;
mod rollout;
mod scale;
mod silence;
mod tenants;
mod turning;
mod undecodable;

use std::sync::Arc;

use libtest_mimic::{Arguments, Trial};

pub use harness::Ctx;

type Test = fn(&Ctx) -> Result<(), String>;
type OwnTest = fn() -> Result<(), String>;

/// Tests on the shared cluster, the longest first, or a core would be idle at the end.
const SHARED: &[(&str, Test)] = &[
    ("tenants::stages::decisions_are_enacted", tenants::stages::decisions_are_enacted),
    ("refused::a_silent_webhook_holds_up_no_stop", refused::a_silent_webhook_holds_up_no_stop),
    ("fleets::volumes_grow_without_restart", fleets::volumes_grow_without_restart),
    ("fleets::surplus_bots_are_not_started", fleets::surplus_bots_are_not_started),
    ("refused::refused_objects_stop_nobody", refused::refused_objects_stop_nobody),
    ("tenants::tiers::four_tiers_run", tenants::tiers::four_tiers_run),
    ("examples::invalid_examples_are_refused", examples::invalid_examples_are_refused),
    ("examples::examples_are_accepted", examples::examples_are_accepted),
    ("examples::examples_are_reconciled", examples::examples_are_reconciled),
    ("examples::crds_explain_everything", examples::crds_explain_everything),
    ("examples::nulls_and_conditions_merge", examples::nulls_and_conditions_merge),
    ("drift::owned_fields_are_put_back", drift::owned_fields_are_put_back),
    ("drift::foreign_additions_stay", drift::foreign_additions_stay),
    ("drift::what_is_not_wanted_goes", drift::what_is_not_wanted_goes),
    ("fleets::changes_roll_one_fleet", fleets::changes_roll_one_fleet),
    ("fleets::new_tiers_move_bots", fleets::new_tiers_move_bots),
    ("fleets::renamed_fleets_trade_one_after_the_other", fleets::renamed_fleets_trade_one_after_the_other),
    (
        "fleets::bots_keep_their_time_and_stop_without_their_label",
        fleets::bots_keep_their_time_and_stop_without_their_label,
    ),
    ("fleets::bots_without_labels_are_reckoned_with", fleets::bots_without_labels_are_reckoned_with),
    ("fleets::fleets_that_wait_get_smaller", fleets::fleets_that_wait_get_smaller),
    ("fleets::shrinking_keeps_volumes", fleets::shrinking_keeps_volumes),
    ("fleets::broken_fleets_are_mended", fleets::broken_fleets_are_mended),
    ("gateway::wakes::a_login_wakes_and_is_told", gateway::wakes::a_login_wakes_and_is_told),
    ("gateway::wakes::replicas_agree_on_who_is_awake", gateway::wakes::replicas_agree_on_who_is_awake),
    ("gateway::strangers::strangers_learn_nothing", gateway::strangers::strangers_learn_nothing),
    ("gateway::page::a_link_opens_the_page", gateway::page::a_link_opens_the_page),
    ("gateway::limits::callers_are_kept_to_their_pace", gateway::limits::callers_are_kept_to_their_pace),
    ("gateway::limits::certificates_are_exchanged", gateway::limits::certificates_are_exchanged),
    ("health::manifests_fit_their_tools", health::manifests_fit_their_tools),
    ("privilege::stolen_tokens_are_worth_little", privilege::stolen_tokens_are_worth_little),
    ("privilege::fields::no_field_leads_out", privilege::fields::no_field_leads_out),
    ("privilege::fields::a_fleet_cannot_name_another_tenant", privilege::fields::a_fleet_cannot_name_another_tenant),
    (
        "refused::keys_that_cannot_be_asked_for_keep_no_bot_asleep",
        refused::keys_that_cannot_be_asked_for_keep_no_bot_asleep,
    ),
    ("refused::a_failing_webhook_holds_up_nobody", refused::a_failing_webhook_holds_up_nobody),
    ("own_fleets::what_waits_sleeps_and_waits_again", own_fleets::what_waits_sleeps_and_waits_again),
    ("own_fleets::bots_stop_whatever_becomes_of_their_tenant", own_fleets::bots_stop_whatever_becomes_of_their_tenant),
    ("own_fleets::a_fleet_that_comes_back_keeps_its_data", own_fleets::a_fleet_that_comes_back_keeps_its_data),
    (
        "own_fleets::a_scaled_fleet_keeps_the_data_of_its_tenants_bots",
        own_fleets::a_scaled_fleet_keeps_the_data_of_its_tenants_bots,
    ),
    ("own_fleets::bots_of_a_workload_that_is_kept_stop", own_fleets::bots_of_a_workload_that_is_kept_stop),
    ("own_fleets::two_hundred_fleets_are_looked_after", own_fleets::two_hundred_fleets_are_looked_after),
    ("rare::surplus_of_every_kind_goes", rare::surplus_of_every_kind_goes),
    ("rare::hosts_have_an_ingress", rare::hosts_have_an_ingress),
    ("rare::fleets_without_a_plan_sleep", rare::fleets_without_a_plan_sleep),
    ("tenants::foreign::foreign_namespaces_stay_untouched", tenants::foreign::foreign_namespaces_stay_untouched),
    ("tenants::foreign::missing_references_are_awaited", tenants::foreign::missing_references_are_awaited),
    ("tenants::foreign::specs_beyond_the_tier_are_stalled", tenants::foreign::specs_beyond_the_tier_are_stalled),
    ("tenants::foreign::fleets_need_a_tenant", tenants::foreign::fleets_need_a_tenant),
    ("tenants::removal::retained_data_is_taken_over", tenants::removal::retained_data_is_taken_over),
    ("tenants::removal::delete_removes_everything", tenants::removal::delete_removes_everything),
    (
        "tenants::removal::bots_stop_in_isolation_however_their_tenant_goes",
        tenants::removal::bots_stop_in_isolation_however_their_tenant_goes,
    ),
    ("tenants::removal::deletions_never_hang", tenants::removal::deletions_never_hang),
    ("tenants::stages::suspended_tenants_sleep", tenants::stages::suspended_tenants_sleep),
    ("tenants::stages::a_refused_resize_stops_nobody", tenants::stages::a_refused_resize_stops_nobody),
    ("tenants::stages::the_quota_lends_to_every_bot", tenants::stages::the_quota_lends_to_every_bot),
    ("tenants::stages::sleep_requests_hold_until_activity", tenants::stages::sleep_requests_hold_until_activity),
    ("tenants::stages::activity_wins_at_every_step", tenants::stages::activity_wins_at_every_step),
    ("tenants::stages::activity_wins_half_way", tenants::stages::activity_wins_half_way),
    ("tenants::status::kstatus_is_honest", tenants::status::kstatus_is_honest),
];

/// Tests that start clusters of their own and want both cores of a small machine, one after another.
const ALONE: &[(&str, OwnTest)] = &[
    ("silence::settled_means_silent", silence::settled_means_silent),
    ("silence::changes_restart_no_pod", silence::changes_restart_no_pod),
    ("scale::hundred_tenants_at_once", scale::hundred_tenants_at_once),
    ("probes::api_server_restart_changes_nothing", probes::api_server_restart_changes_nothing),
    ("leader::only_one_operator_writes", leader::only_one_operator_writes),
];

/// Tests that start clusters of their own, or need none: three at a time, for most of them wait, and the longest first, or one core
/// would be idle at the end.
const PAIRED: &[(&str, OwnTest)] = &[
    ("install::releases_come_and_go", install::releases_come_and_go),
    ("turning::tenants_turn_round_at_each_write", turning::tenants_turn_round_at_each_write),
    ("hibernation::stages::kills_end_alike", hibernation::stages::kills_end_alike),
    ("hibernation::webhooks::nobody_sleeps_unwarned", hibernation::webhooks::nobody_sleeps_unwarned),
    ("rollout::catalogues_change_few_tenants_at_a_time", rollout::catalogues_change_few_tenants_at_a_time),
    (
        "rollout::what_concerns_all_holds_up_nobody_who_is_awaited",
        rollout::what_concerns_all_holds_up_nobody_who_is_awaited,
    ),
    ("pools::pools_keep_nodes_and_classes", pools::pools_keep_nodes_and_classes),
    ("faults::kills_change_nothing", faults::kills_change_nothing),
    ("faults::deletions_lose_no_data", faults::deletions_lose_no_data),
    ("health::tools_agree_on_every_version", health::tools_agree_on_every_version),
    ("hindered::late_bots_are_named", hindered::late_bots_are_named),
    ("hindered::full_nodes_stop_nobody", hindered::full_nodes_stop_nobody),
    ("hindered::silent_events_hold_up_nobody", hindered::silent_events_hold_up_nobody),
    ("probes::readiness_names_what_is_missing", probes::readiness_names_what_is_missing),
    ("undecodable::unreadable_objects_stop_nobody", undecodable::unreadable_objects_stop_nobody),
    ("hibernation::stages::four_tiers_sleep_and_wake", hibernation::stages::four_tiers_sleep_and_wake),
    (
        "hibernation::stages::an_operator_that_was_away_catches_up",
        hibernation::stages::an_operator_that_was_away_catches_up,
    ),
    (
        "hibernation::breaker::a_crowd_is_held_until_somebody_has_looked",
        hibernation::breaker::a_crowd_is_held_until_somebody_has_looked,
    ),
    (
        "hibernation::breaker::a_clock_that_jumps_puts_nobody_to_sleep",
        hibernation::breaker::a_clock_that_jumps_puts_nobody_to_sleep,
    ),
    ("hibernation::breaker::a_silent_feed_and_a_hand_hold", hibernation::breaker::a_silent_feed_and_a_hand_hold),
    ("hibernation::webhooks::a_dead_receiver_is_given_up", hibernation::webhooks::a_dead_receiver_is_given_up),
    ("gateway::faults::killed_replicas_lose_no_login", gateway::faults::killed_replicas_lose_no_login),
    ("gateway::faults::an_absent_api_server_is_told_at_once", gateway::faults::an_absent_api_server_is_told_at_once),
    ("install::examples_are_accepted", install::examples_are_accepted),
    ("receiver::receiver_behaves_as_told", receiver::receiver_behaves_as_told),
    ("examples::columns_and_names_are_short", examples::columns_and_names_are_short),
];

/// Tests that need programs from elsewhere or the image, run by `make page-test`, `make api-test`, `make traefik-test` and
/// `make image-check`, and by nothing else.
const OUTSIDE: &[(&str, OwnTest)] = &[
    ("browser::the_page_leads_to_the_dashboard", browser::the_page_leads_to_the_dashboard),
    ("gateway::document::answers_are_documented", gateway::document::answers_are_documented),
    ("gateway::hosts::sleeping_hosts_lead_to_the_page", gateway::hosts::sleeping_hosts_lead_to_the_page),
    ("image::names_and_certificates_work_inside", image::names_and_certificates_work_inside),
];

fn main() {
    let mut arguments = Arguments::from_args();
    let wanted = |name: &str| arguments.filter.as_deref().is_none_or(|filter| name.contains(filter));
    let outside = std::env::var_os("TORPOR_OUTSIDE").is_some();
    let (shared, paired, alone) = if outside { (&[][..], &[][..], OUTSIDE) } else { (SHARED, PAIRED, ALONE) };
    let shared: Vec<_> = shared.iter().filter(|(name, _)| wanted(name)).collect();
    let own = |tests: &[(&'static str, OwnTest)]| -> Vec<Trial> {
        let tests = tests.iter().filter(|(name, _)| wanted(name));
        tests.map(|&(name, test)| Trial::test(name, move || test().map_err(Into::into))).collect()
    };
    let (paired, mut alone) = (own(paired), own(alone));
    let listing = arguments.list;
    let whole = !outside && arguments.filter.is_none() && arguments.skip.is_empty();
    let context = if shared.is_empty() || listing { None } else { Some(Arc::new(start())) };
    let mut trials = Vec::new();
    for (name, test) in shared {
        let (context, test) = (context.clone(), *test);
        trials.push(Trial::test(*name, move || match &context {
            Some(context) => test(context).map_err(Into::into),
            None => Err("no cluster".into()),
        }));
    }
    if listing {
        trials.extend(paired);
        trials.extend(alone);
        libtest_mimic::run(&arguments, trials).exit();
    }
    if whole {
        // Last: it judges what all others did.
        alone.push(Trial::test("rights::given_and_used", || rights::balance().map_err(Into::into)));
    }
    // Most of such a test is waiting, also where there are two cores.
    arguments.test_threads = arguments.test_threads.or(Some(3));
    let mut outcomes = vec![libtest_mimic::run(&arguments, trials)];
    drop(context);
    for (threads, trials) in [(3, paired), (1, alone)] {
        if !trials.is_empty() {
            arguments.test_threads = Some(threads);
            outcomes.push(libtest_mimic::run(&arguments, trials));
        }
    }
    if let Some(failed) = outcomes.iter().find(|outcome| outcome.has_failed()) {
        failed.exit();
    }
}

fn start() -> Ctx {
    match Ctx::start() {
        Ok(context) => context,
        Err(error) => {
            eprintln!("the test cluster did not start: {error}");
            std::process::exit(1);
        }
    }
}
