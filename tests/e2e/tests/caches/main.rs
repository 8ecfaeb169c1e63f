//! Caches on a real engine and a real S3 server.

#![expect(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "a test program: a failed unwrap is a failed case"
)]

mod bucket;
mod builds;
mod engines;
mod runs;
mod trouble;

use std::future::Future;

use libtest_mimic::{Arguments, Failed, Trial};
use orchestra_e2e::{Dir, Finished, Fixture, OwnEngine, Purpose};

use bucket::*;
use builds::*;
use engines::*;
use runs::*;
use trouble::*;

fn main() {
    let arguments = Arguments::from_args();
    let fixture = match Fixture::from_env() {
        Ok(Some(fixture)) => fixture,
        Ok(None) => {
            println!("skipped: needs an engine, see `cargo xtask e2e`");
            return;
        }
        Err(error) => panic!("{error}"),
    };
    macro_rules! cases {
        ($($case:ident),* $(,)?) => { vec![$(trial(&fixture, stringify!($case), |fixture| async move { $case(&fixture).await })),*] };
    }
    let mut trials = cases![
        a_cache_of_a_task_comes_back_on_the_next_run,
        what_a_run_leaves_as_it_was_is_unchanged_and_what_it_hides_is_not,
        a_cache_that_changes_in_part_comes_back_whole,
        what_is_configured_of_caches_holds,
        the_examples_find_their_packages_again,
        a_run_without_caches_leaves_the_store_alone,
        the_store_is_looked_after_by_the_command,
        a_prune_takes_what_is_older_than_the_configured_time_to_live,
        a_store_that_does_not_work_leaves_a_green_run,
        a_store_that_is_full_or_read_only_keeps_what_it_has,
        a_builds_layers_come_back_exactly,
    ];
    if S3::from_env().is_some() {
        trials.extend(cases![
            a_bucket_is_a_store,
            wrong_credentials_an_absent_bucket_and_a_dead_server_are_told_apart,
            a_server_that_refuses_for_a_while_costs_time_and_nothing_else,
            a_server_that_refuses_for_ever_costs_a_bounded_delay,
            connections_that_are_cut_lose_nothing,
            a_slow_server_is_waited_for,
            a_cache_goes_through_a_bucket,
            credentials_of_a_bucket_may_be_secrets,
            the_variables_of_other_programs_say_what_the_config_does_not,
            whatever_a_bucket_does_costs_a_run_a_bounded_delay,
            two_runs_persist_one_key_at_once,
            a_run_that_is_interrupted_while_it_restores_ends_soon_and_leaves_nothing,
            a_run_that_is_interrupted_while_it_persists_ends_soon_and_leaves_nothing,
            a_run_that_is_killed_while_it_persists_leaves_the_old_cache_or_the_new,
        ]);
    } else {
        println!("no S3 server is given: its cases are left out");
    }
    if OwnEngine::is_given(Purpose::Other) {
        trials.extend(cases![
            the_state_of_buildkit_goes_from_one_kind_of_engine_to_another,
            a_cache_of_a_task_comes_back_on_an_engine_of_another_kind,
        ]);
    } else {
        println!("no engine of another kind is given: its case is left out");
    }
    libtest_mimic::run(&arguments, trials).exit();
}

fn trial<Work: Future<Output = ()> + 'static>(fixture: &Fixture, name: &str, case: fn(Fixture) -> Work) -> Trial {
    let fixture = fixture.clone();
    let run = move || -> Result<(), Failed> {
        let runtime = tokio::runtime::Runtime::new()?;
        runtime.block_on(case(fixture));
        Ok(())
    };
    Trial::test(name, run)
}

fn run(fixture: &Fixture, dir: &Dir, environment: &[(&str, &str)], args: &[&str]) -> Finished {
    let command = fixture.orchestra(args).dir(dir.path());
    let with = |command: orchestra_e2e::Orchestra, (name, value): &(&str, &str)| command.env(name, value);
    environment.iter().fold(command, with).run()
}

fn says(finished: &Finished, parts: &[&str]) {
    for part in parts {
        assert!(finished.all().contains(part), "it does not say {part:?}\n{finished}");
    }
}
