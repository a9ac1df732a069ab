"""Instructions for text-only training and measurement: seeded, varied, split by topic.

python -m sparrow.smollm2.prompts train 3000 > prompts.jsonl     # for sparrow train drafter data.clips=prompts.jsonl
"""

import json
import random
import sys

FORMS = {
    "explain": ("Explain {} to a beginner.", "How would you explain {} to a child?", "What is {}?",
                "Explain in two sentences why people care about {}.", "Describe {} in one paragraph."),
    "list": ("List five facts about {}.", "Give me three tips about {}.", "Name four things that belong to {}.",
             "Make a checklist for someone new to {}.", "What are the advantages and disadvantages of {}?"),
    "story": ("Write a short story about {}.", "Write a short poem about {}.", "Begin a tale in which {} matters.",
              "Write a dialogue between two people about {}."),
    "chat": ("I have just become interested in {}. Where should I start?", "My friend dislikes {}. What can I say?",
             "Tell me something surprising about {}.", "Can you help me plan a weekend around {}?",
             "Do you think {} will change in the next ten years?"),
    "write": ("Write an email to a friend about {}.", "Write a short speech about {}.", "Write a headline about {}.",
              "Summarize the history of {}.", "Write a product description that mentions {}."),
    "code": ("Write a Python function that counts how often the words '{}' occur in a text.",
             "Write a Python class that stores notes about {}.", "Write an SQL table for a collection about {}.",
             "Write a small HTML page with a heading about {}."),
    "clip": ("A video shows {}. What could be its title?", "Describe a video about {}, second by second.",
             "Which questions would you ask about a clip that shows {}?"),
}  # fmt: skip
TOPICS = {
    "train": """photosynthesis; gardening; the ocean; bread baking; electric cars; the moon; public libraries;
        jazz music; volcanoes; chess; bicycles; honey bees; the Roman Empire; solar power; tea; mountain climbing;
        the human heart; glaciers; poetry; the internet; coffee; wolves; bridges; watercolors; the stock market;
        gravity; vaccines; yoga; trains; rice farming; dinosaurs; swimming; the printing press; friendship; deserts;
        cheese; thunderstorms; photography; robots; sleep; recycling; the piano; earthquakes; fishing;
        language learning; the water cycle; castles; small businesses; owls; insulin; space travel; pottery; rivers;
        magnets; democracy; hiking; the violin; batteries; forests; time management; whales; maps; fermentation;
        plumbing; mathematics; dreams; the telephone; spices; ants; wind turbines; pasta; cats; knitting; soil;
        lighthouses; newspapers; the liver; camping; snow; horses; algebra; silk; marathons; the Sahara;
        public speaking; clocks; penguins; chocolate; tides; weather forecasts; carpentry; microscopes; the guitar;
        butterflies; salt; elections; astronomy; noodles; kites; memory""",
    "dev": """apples; the compass; rainbows; steam engines; saving money; the drums; turtles; glass; the nervous system;
        tennis; museums; bamboo; shadows; soup; airports; spiders; typography; the Vikings; lakes; juggling""",
    "test": """coral reefs; skateboarding; mushrooms; airplanes; interest rates; origami; elephants; the periodic table;
        beekeeping; opera; sailing; the Silk Road; lightning; pizza; muscles; windows; submarines; dance; comets;
        vegetables; tunnels; mirrors; the alphabet; perfume; foxes""",
}  # fmt: skip


def topics(split: str) -> list[str]:
    """A split's topics; no topic is in two.

    Raises:
        ValueError: an unknown split.
    """
    if split not in TOPICS:
        raise ValueError(f"split must be one of {', '.join(TOPICS)}, got {split!r}")
    return [" ".join(topic.split()) for topic in TOPICS[split].split(";")]


def prompts(split: str, count: int, seed: int = 0) -> list[str]:
    """Different instructions, kinds taking turns; the first `n` are the same whatever the count.

    Args:
        split: "train", "dev" or "test".
        count: at most as many as there are forms times topics.
        seed: of the order.

    Raises:
        ValueError: an unknown split, or a count that cannot be had.
    """
    names = topics(split)
    rng = random.Random(f"{seed} {split}")
    by_kind = [[form.format(topic) for form in forms for topic in names] for forms in FORMS.values()]
    for made in by_kind:
        rng.shuffle(made)
    most = sum(map(len, by_kind))
    if not 0 <= count <= most:
        raise ValueError(f"count must lie in [0, {most}] for the split {split!r}, got {count}")
    turns = [made[i] for i in range(max(map(len, by_kind))) for made in by_kind if i < len(made)]
    return turns[:count]


if __name__ == "__main__":
    for prompt in prompts(sys.argv[1], int(sys.argv[2])):
        print(json.dumps({"prompt": prompt}))
