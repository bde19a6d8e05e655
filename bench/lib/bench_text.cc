#include "bench/lib/bench_text.h"

#include <memory>

#include "absl/status/statusor.h"
#include "engine/io/gguf.h"
#include "engine/tokenizer/tokenizer.h"

namespace cogumi::bench {

std::string_view BenchText() {
  return R"(The harbour was still dark when Ida opened the door of the workshop. Her father had
left the lamp burning, and beside it lay the broken compass that the captain of the
ferry had brought the evening before. She turned it over. The glass was cracked, the
needle hung crooked on its pin, and somebody had tried to mend the ring with wax. It
would take the whole morning, she thought, and the ferry left at noon. She put water
on the stove, sharpened the small file and began.

Question: Why do leaves change their colour in autumn?
Answer: Leaves are green because of chlorophyll, which catches light and turns it into sugar.
When the days become shorter and colder, the tree stops making it and takes back what it can
use. Yellow and orange pigments that were there all summer become visible, and in some trees red
ones are made from the sugar that remains in the leaf.

Question: What is the difference between a list and a tuple in Python?
Answer: A list can be changed after it was made: elements can be added, replaced or removed. A
tuple cannot. That is why a tuple can be a key of a dictionary and a list cannot.

def moving_average(values, width):
    """Returns the mean of every `width` neighbouring values."""
    if width < 1:
        raise ValueError("width must be positive")
    total = sum(values[:width])
    means = [total / width]
    for i in range(width, len(values)):
        total += values[i] - values[i - width]
        means.append(total / width)
    return means

To plant a small apple tree you need:
1. A spade and a bucket of water.
2. A place with sun for at least six hours a day.
3. A stake that is about as tall as the tree.
4. Compost, if the soil is poor.
Dig a hole that is twice as wide as the roots. Set the tree so that the graft stays above the
ground, fill the hole with soil, tread it down gently and water it well. Tie the trunk to the
stake, but not too tightly, because it has to move a little in the wind to become strong.

Dear Mr. Okafor, thank you for your letter of the third of March. We are sorry to hear that two
of the chairs arrived with scratches. Please keep them; we will send two new ones this week, and
the driver will take the old ones with him. You do not have to pay anything. If you would rather
have your money back, tell us, and it will be in your account within five days.

By noon the compass pointed north again. Ida wrapped it in a cloth and ran down to the quay,
where the captain stood with his watch in his hand. He held the compass up against the light,
turned around twice, and laughed. "Better than before," he said. "What do I owe you?" She had
not thought about that. "Take me with you," she said at last. "Only to the island and back. I
have never seen the lighthouse from the water." He looked at the sky, then at the workshop,
where her father stood in the door and nodded.
)";
}

std::vector<TokenId> BenchTokens(const GgufFile& file) {
  const absl::StatusOr<std::unique_ptr<Tokenizer>> tokenizer = Tokenizer::Create(file);
  if (!tokenizer.ok()) return {};
  return (*tokenizer)->Encode(BenchText(), false).ids;
}

}  // namespace cogumi::bench
