"""What holds for engines holds for a device's: tests of the other files, with the device's control flow on the host."""

from __future__ import annotations

import pytest

from tests.engine import engine_helpers
from tests.engine.test_engine_async import (  # noqa: F401  # collected here once more
    test_a_request_cancelled_while_its_row_runs_ends_once_and_gets_no_more,
    test_a_row_that_ran_for_nothing_is_neither_told_nor_counted,
    test_an_id_that_ended_may_be_used_again_while_its_last_row_runs,
    test_outputs_are_those_of_synchronous_scheduling,
    test_penalties_count_a_token_once_whose_request_was_preempted_while_it_was_sampled,
    test_the_end_of_a_step_is_told_by_a_descriptor,
)
from tests.engine.test_engine_failures import (  # noqa: F401
    engine,
    test_the_ends_of_every_range_can_be_sampled,
)
from tests.engine.test_engine_fleet import (  # noqa: F401
    test_a_model_that_is_added_computes_what_it_computes_alone,
    test_memory_is_released_while_all_sleep_and_nobody_reads_what_was_there,
    test_texts_are_the_same_across_sleep_and_wake,
    test_the_space_of_a_sleeping_model_serves_another,
)
from tests.engine.test_engine_invariance import (  # noqa: F401
    alone,
    test_company_and_chunking_do_not_change_the_text,
    test_preemption_does_not_change_the_text,
    test_prefix_hits_do_not_change_the_text,
)
from tests.engine.test_engine_tiers import (  # noqa: F401
    test_models_that_share_slabs_have_tiers,
    test_prefixes_come_back_from_host_memory,
    test_prefixes_come_back_from_the_disk,
)


@pytest.fixture(autouse=True)
def _on_device(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine_helpers, "PLATFORM", {"backend": "cuda", "device": "cpu", "block_size": 16})
    # Matrix products of torch round by the number of their rows.
    monkeypatch.setattr(engine_helpers.Exact, "tolerance", 1e-4)
