"""The fault suite: which test proves which case, and what this platform cannot show.

A case is a fault and the invariant that survives it, numbered as the project's list of faults does. Most
have their test beside the module that answers for them; what needs random transactions, a proxy, a full disk
or a kill at a named step is in this folder: `workload` commits, `recorder` puts on tape what the handlers of
the real service got, `oracle` compares. Everything runs against a real PostgreSQL and a child process.

Not shown here, or not wholly:

- 4: EIO is what SQLite's commit raises in the service's process. A disk that gives it takes a device mapper,
  which a container has not; the full disk is a real file system of 1 MiB.
- 23: reasons of invalidation of servers that are newer than the one installed are given as the values their
  catalog has; which of these were seen on such a server, the tests named say.
- 24: a server that knows `output_plugin_libraries` is asked where there is one.
- 25: a slot that a standby synchronizes takes PostgreSQL 17; here the slot is made on the promoted server.
- 27: a network that loses packets takes privileges over the network that a test should not have; the proxy
  holds, cuts and resets instead, which is what the service sees of it.
- 62: an hour is for `make soak`; here are seconds of it.
"""

from __future__ import annotations

import ast
from functools import cache
from pathlib import Path

import pytest

TESTS = Path(__file__).resolve().parent.parent

CASES: dict[int, list[str]] = {
    1: [
        "faults/test_kills.py::test_killed_at_any_step_nothing_is_lost",
        "test_restart.py::test_killed_at_random_moments_nothing_is_lost",
    ],
    2: ["faults/test_kills.py::test_killed_before_its_checkpoint_a_transaction_comes_again_once"],
    3: ["faults/test_checkpoint_faults.py::test_without_a_word_to_the_server_the_own_checkpoint_prevents_replays"],
    4: ["faults/test_checkpoint_faults.py::test_nothing_is_acknowledged_that_the_disk_did_not_take"],
    5: ["test_refusals.py::test_a_torn_state_file_is_refused", "test_state.py::test_garbage_is_refused"],
    6: [
        "test_refusals.py::test_a_checkpoint_of_another_cluster_is_refused",
        "test_refusals.py::test_a_checkpoint_beyond_the_servers_wal_is_refused",
    ],
    7: [
        "test_restart.py::test_killed_inside_a_transaction_all_of_it_arrives",
        "test_restart.py::test_a_stop_inside_a_large_transaction_resumes_at_the_event",
    ],
    8: ["test_restart.py::test_an_old_transaction_open_across_a_restart_arrives"],
    9: ["test_restart.py::test_killed_inside_a_transaction_all_of_it_arrives"],
    10: ["test_restart.py::test_a_non_transactional_message_before_a_restart_changes_nothing"],
    11: [
        "test_restart.py::test_a_stopped_and_started_server_costs_nothing",
        "faults/test_processes.py::test_a_server_killed_as_by_a_power_cut_costs_nothing",
        "faults/test_processes.py::test_a_killed_backend_of_the_server_costs_nothing",
    ],
    12: ["test_restart.py::test_a_fast_stop_of_an_idle_server_takes_seconds"],
    13: ["test_server_stop.py::test_a_fast_stop_is_over_in_time_whatever_the_handlers_do"],
    14: ["test_restart.py::test_acknowledged_transactions_do_not_come_again_after_a_server_restart"],
    15: [
        "test_restart.py::test_a_terminated_walsender_is_replaced_when_idle",
        "test_restart.py::test_a_terminated_walsender_is_replaced_inside_a_transaction",
        "faults/test_processes.py::test_a_walsender_terminated_at_any_moment_costs_nothing",
    ],
    16: ["faults/test_processes.py::test_a_service_that_stood_still_too_long_connects_again"],
    17: [
        "faults/test_network.py::test_a_walsender_that_outlived_our_connection_is_ended_and_the_slot_goes_on",
        "test_restart.py::test_a_slot_held_by_another_is_waited_for",
    ],
    18: [
        "test_restart.py::test_a_slot_held_by_another_is_waited_for",
        "test_standby.py::test_a_standby_takes_over_from_one_that_is_killed",
        "test_standby.py::test_one_that_stood_still_delivers_nothing_after_the_takeover",
    ],
    19: [
        "faults/test_processes.py::test_a_slot_dropped_under_a_running_service_ends_it",
        "test_refusals.py::test_a_slot_that_is_gone_is_not_made_anew",
    ],
    20: ["test_refusals.py::test_a_slot_that_was_dropped_and_made_anew_is_refused"],
    21: ["test_refusals.py::test_a_slot_that_somebody_advanced_is_refused"],
    22: [
        "test_refusals.py::test_a_slot_invalidated_while_connected_ends_the_service_at_once",
        "test_refusals.py::test_a_slot_invalidated_while_away_is_made_anew_only_on_demand",
    ],
    23: ["test_resume.py::test_an_invalidated_slot_is_refused_whatever_the_reason"],
    24: [
        "test_preflight.py::test_wal_level_replica_is_an_error_and_the_statement_mends_it",
        "test_preflight.py::test_role_without_replication_is_an_error_and_the_statement_mends_it",
        "test_preflight.py::test_wrong_password_and_database_have_their_own_remedies",
        "test_preflight.py::test_plugin_that_the_server_lacks_is_told_with_the_package",
        "test_preflight.py::test_refused_plugin_is_mended_in_the_list",
        "faults/test_limits.py::test_a_limit_of_the_server_is_told_with_its_remedy",
    ],
    25: [
        "test_failover.py::test_the_service_follows_a_promotion_and_loses_nothing",
        "test_failover.py::test_a_promoted_standby_that_was_behind_is_refused",
    ],
    26: ["test_resume.py::test_a_checkpoint_of_another_history_is_refused"],
    27: [
        "faults/test_network.py::test_a_bad_network_costs_no_event",
        "faults/test_network.py::test_a_connection_into_a_black_hole_is_given_up",
    ],
    28: ["test_stream.py::test_interleaved_transactions_arrive_in_commit_order"],
    29: ["test_end_to_end.py::test_what_is_rolled_back_never_happened"],
    30: ["test_end_to_end.py::test_prepared_transaction_comes_once_when_it_is_committed"],
    31: ["test_stream.py::test_a_transaction_of_a_million_rows_passes_in_bounded_memory"],
    32: [
        "test_workers.py::test_lanes_keep_the_order_of_each_record",
        "faults/test_random.py::test_a_shadow_of_the_events_equals_the_source_whatever_happens",
    ],
    33: [
        "test_workers.py::test_lanes_keep_the_order_of_each_record",
        "faults/test_random.py::test_a_shadow_of_the_events_equals_the_source_whatever_happens",
    ],
    34: [
        "test_stream.py::test_flushed_lsn_waits_for_an_unsettled_commit",
        "test_progress.py::test_ledger_agrees_with_a_naive_model_whatever_settles_when",
    ],
    35: [
        "test_stream.py::test_keepalives_do_not_move_the_slot_while_a_transaction_is_unsettled",
        "faults/test_processes.py::test_a_transaction_that_only_a_keepalive_passed_is_delivered_after_a_crash",
    ],
    36: ["test_workers.py::test_hanging_callback_does_not_stop_another_until_the_bound"],
    37: ["test_workers.py::test_abandoned_threads_are_bounded", "test_workers.py::test_thread_that_hangs_is_abandoned"],
    38: [
        "test_metrics.py::test_a_removed_handler_is_seen",
        "test_callbacks.py::test_registry_removes_each_callback_once",
    ],
    39: ["faults/test_handlers.py::test_an_event_that_failed_after_its_effect_comes_again_with_the_same_key"],
    40: ["test_workers.py::test_consecutive_failures_are_exact_at_the_boundary"],
    41: ["test_http.py::test_ready_turns_503_when_a_handler_is_removed"],
    42: ["test_workers.py::test_manager_lives_on_whatever_a_callback_raises"],
    43: ["test_stream.py::test_a_callback_that_blocks_the_event_loop_does_not_cost_the_connection"],
    44: [
        "test_restart.py::test_a_clean_stop_under_load_delivers_nothing_twice",
        "test_restart.py::test_a_hanging_callback_is_left_behind_at_the_drain_deadline",
        "test_restart.py::test_a_second_sigterm_ends_it_at_once",
    ],
    45: ["test_stream.py::test_a_full_queue_does_not_cost_the_connection"],
    59: ["faults/test_random.py::test_a_shadow_of_the_events_equals_the_source_whatever_happens"],
    60: ["faults/test_handlers.py::test_the_service_says_by_itself_that_nothing_is_owed"],
    61: [
        "faults/test_random.py::test_a_shadow_of_the_events_equals_the_source_whatever_happens",
        "faults/test_oracle.py::test_accounts_that_do_not_add_up_are_seen",
    ],
    62: ["faults/test_soak.py::test_a_short_soak_ends_at_rest"],
}


@cache
def names_in(file: str) -> frozenset[str]:
    """Names of all test functions of a module."""
    tree = ast.parse((TESTS / file).read_text())
    return frozenset(node.name for node in tree.body if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef))


def test_every_case_is_in_the_table() -> None:
    """1 to 45 and 59 to 62; 46 to 58 are about values, and belong to the tests of these."""
    assert sorted(CASES) == [*range(1, 46), *range(59, 63)]


@pytest.mark.parametrize("case", CASES)
def test_every_case_has_a_test(case: int) -> None:
    """The table names tests that are there."""
    for name in CASES[case]:
        file, _, function = name.partition("::")
        assert function in names_in(file), name
    assert CASES[case]
