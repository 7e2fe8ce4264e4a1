#pragma once

namespace quantd::compute {

// Why a segment cannot be what an encoder wrote.
enum class SegmentFault { kNone, kEndsEarly, kHasWordsLeft, kWrongEscapes, kWrongState };

}  // namespace quantd::compute
