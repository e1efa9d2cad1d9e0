#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include "bindings/convert.h"
#include "kv/kv_events.h"
#include "sched/decisions.h"

// The records that cross in structured arrays, and the enums of their columns.

namespace py = pybind11;

namespace airi::bindings {

void bind_events(const py::module_& m) {
  PYBIND11_NUMPY_DTYPE(Hash128, lo, hi);
  PYBIND11_NUMPY_DTYPE(KvEvent, hash, parent, kind, tier, model, num_tokens);
  PYBIND11_NUMPY_DTYPE_EX(DecisionRecord, request, "request_id", tenant, "tenant", at, "at_us", model,
                          "model", decision, "decision", a, "a", b, "b");
  py::native_enum<Decision>(m, "Decision", "enum.IntEnum", "What was decided about a request, and why.")
      .value("SUBMITTED", Decision::kSubmitted)
      .value("QUEUED_TURN", Decision::kQueuedTurn)
      .value("QUEUED_SLOTS", Decision::kQueuedSlots)
      .value("QUEUED_BLOCKS", Decision::kQueuedBlocks)
      .value("QUEUED_BUDGET", Decision::kQueuedBudget)
      .value("QUEUED_BARRED", Decision::kQueuedBarred)
      .value("QUEUED_PREFIX", Decision::kQueuedPrefix)
      .value("QUEUED_QUOTA", Decision::kQueuedQuota)
      .value("QUEUED_BEST_EFFORT", Decision::kQueuedBestEffort)
      .value("ADMITTED", Decision::kAdmitted)
      .value("CHUNKED", Decision::kChunked)
      .value("PREEMPTED_MEMORY", Decision::kPreemptedMemory)
      .value("PREEMPTED_URGENT", Decision::kPreemptedUrgent)
      .value("PREEMPTED_GAP", Decision::kPreemptedGap)
      .value("PREEMPTED_SLAB", Decision::kPreemptedSlab)
      .value("PREEMPTED_SLEEP", Decision::kPreemptedSleep)
      .value("FINISHED_STOP", Decision::kFinishedStop)
      .value("FINISHED_LENGTH", Decision::kFinishedLength)
      .value("FINISHED_CANCELLED", Decision::kFinishedCancelled)
      .value("FINISHED_DEADLINE", Decision::kFinishedDeadline)
      .value("FINISHED_FAILED", Decision::kFinishedFailed)
      .value("FINISHED_NAN", Decision::kFinishedNan)
      .value("FINISHED_NEVER_FITS", Decision::kFinishedNeverFits)
      .value("REFUSED_QUEUE_FULL", Decision::kRefusedQueueFull)
      .value("REFUSED_TOO_LONG", Decision::kRefusedTooLong)
      .value("REFUSED_NEVER_FITS", Decision::kRefusedNeverFits)
      .value("REFUSED_DUPLICATE_ID", Decision::kRefusedDuplicateId)
      .value("REFUSED_MODEL_GONE", Decision::kRefusedModelGone)
      .finalize();
  py::native_enum<KvEventKind>(m, "KvEventKind", "enum.IntEnum", "What became of the blocks of a hash.")
      .value("STORED", KvEventKind::kStored)
      .value("REMOVED", KvEventKind::kRemoved)
      .finalize();
  py::native_enum<KvTier>(m, "KvTier", "enum.IntEnum", "Where KV lies.")
      .value("DEVICE", KvTier::kDevice)
      .value("HOST", KvTier::kHost)
      .value("DISK", KvTier::kDisk)
      .finalize();
}

}  // namespace airi::bindings
