"""All checks, in the order in which they run: a fault is told first where it shows most plainly."""

from __future__ import annotations

from collections.abc import Callable

from latentfit.testing._conditions import (
    classes_are_honoured,
    conditional_log_prob_integrates_to_one,
    conditions_are_declared,
    vectors_are_honoured,
)
from latentfit.testing._density import (
    has_density_tells_the_truth,
    log_prob_agrees_with_samples,
    log_prob_has_shape_and_dtype,
    log_prob_has_the_right_gradient,
    log_prob_integrates_to_one,
    log_prob_of_a_row_is_its_own,
)
from latentfit.testing._lab import Lab
from latentfit.testing._latents import suitable_latents_are_declared
from latentfit.testing._options import (
    constructor_only_stores,
    options_are_declared,
    options_work_within_their_ranges,
)
from latentfit.testing._process import (
    fit_ends_near_max_seconds,
    history_and_facts_can_be_saved,
    interruption_leaves_nothing_half_made,
    nothing_is_warned_of,
    process_is_left_as_it_was,
    tensors_of_one_device_are_used_together,
)
from latentfit.testing._rows import (
    constant_dimensions_come_back,
    dependent_columns_are_handled,
    few_rows_are_handled,
    fit_needs_no_held_out_rows,
    heavy_tails_are_handled,
    many_columns_are_handled,
    one_dimension_is_handled,
    repeated_rows_are_handled,
    rows_are_not_modified,
)
from latentfit.testing._samples import (
    fit_is_reproducible,
    rows_of_a_draw_are_independent,
    samples_follow_the_data,
    samples_have_shape_and_dtype,
    seed_decides_the_samples,
    small_draws_are_like_large_ones,
)
from latentfit.testing._state import (
    saved_sampler_works_in_a_fresh_process,
    shapes_are_fixed_before_the_fit,
    state_is_complete,
    use_changes_nothing,
)

__all__ = ["LAWS", "Law"]

Law = Callable[[Lab], None]

LAWS: tuple[Law, ...] = (
    # what the class declares
    options_are_declared,
    constructor_only_stores,
    has_density_tells_the_truth,
    conditions_are_declared,
    suitable_latents_are_declared,
    options_work_within_their_ranges,
    # samples
    samples_have_shape_and_dtype,
    seed_decides_the_samples,
    fit_is_reproducible,
    small_draws_are_like_large_ones,
    rows_of_a_draw_are_independent,
    samples_follow_the_data,
    # densities
    log_prob_has_shape_and_dtype,
    log_prob_of_a_row_is_its_own,
    log_prob_integrates_to_one,
    log_prob_agrees_with_samples,
    log_prob_has_the_right_gradient,
    # conditions
    classes_are_honoured,
    vectors_are_honoured,
    conditional_log_prob_integrates_to_one,
    # state
    shapes_are_fixed_before_the_fit,
    state_is_complete,
    use_changes_nothing,
    saved_sampler_works_in_a_fresh_process,
    # rows
    rows_are_not_modified,
    fit_needs_no_held_out_rows,
    few_rows_are_handled,
    one_dimension_is_handled,
    repeated_rows_are_handled,
    dependent_columns_are_handled,
    many_columns_are_handled,
    heavy_tails_are_handled,
    constant_dimensions_come_back,
    # the process
    process_is_left_as_it_was,
    tensors_of_one_device_are_used_together,
    nothing_is_warned_of,
    history_and_facts_can_be_saved,
    fit_ends_near_max_seconds,
    interruption_leaves_nothing_half_made,
)
