"""Texts that show the int8 engine what a model's activations look like.

They are part of what "int8" means: other texts give other ranges and so other vectors. Prose,
questions, code, tables, names and several languages, short and long.
"""

from typing import Final

TEXTS: Final = (
    "The river rose two metres overnight, and by morning the lower road was under water.",
    "Returns the number of bytes written, or raises OSError if the descriptor is closed.",
    "How do I change the language of the keyboard on my phone?",
    "Add the onions and a pinch of salt, cover, and cook gently for ten minutes until they are "
    "soft but not brown. Stir in the garlic, then the tomatoes, and simmer until the sauce is "
    "thick.",
    "def mean(values):\n    if not values:\n        raise ValueError('no values')\n"
    "    return sum(values) / len(values)",
    "Quarterly revenue was $4.2 billion, up 7.5 % from a year earlier; operating margin fell to "
    "18.3 % as the cost of freight and energy rose.",
    "A patient of 54 years came with chest pain that had begun three hours before. Blood pressure "
    "was 148/92 mmHg, the pulse 88 and regular. The electrocardiogram showed no acute change.",
    "black cotton shirt, size M, long sleeves, machine wash at 30 °C",
    "SELECT name, COUNT(*) FROM orders WHERE created_at > '2024-01-01' GROUP BY name;",
    "In the first chapter the author describes the small town where she grew up, its two streets, "
    "the mill, and the school that all eleven children of the family attended one after another.",
    "ERROR 2024-03-11 14:02:57 connection to 10.0.0.12:5432 refused, retry 3 of 5",
    "Der Zug nach Hamburg fährt heute von Gleis 7 ab und hat etwa zehn Minuten Verspätung.",
    "Why is the sky blue? Sunlight is scattered by the molecules of the air, and short waves are "
    "scattered far more than long ones, so blue light reaches the eye from every direction.",
    "The tenant shall give notice in writing not less than three months before the end of the "
    "term. The deposit shall be returned within thirty days, less the cost of any damage.",
    "Great hotel, friendly staff, but the room next to the lift was noisy. Breakfast was superb!",
    "Photosynthesis turns light, water and carbon dioxide into sugar and oxygen.",
    'class Queue(Generic[T]):\n    """A first-in, first-out queue."""\n\n'
    "    def __init__(self, maxsize: int = 0) -> None:\n        self._items: deque[T] = deque()",
    "Les enfants jouent dans le jardin pendant que leur grand-mère prépare le déjeuner.",
    "git rebase -i HEAD~3   # squash the last three commits into one",
    "The committee met on Tuesday 14 May at 19:30. Present: Mrs Okafor (chair), Mr Lindqvist, "
    "Dr Tanaka. Apologies: Ms Moreau. The minutes of the last meeting were approved.",
    "The theorem holds for every compact metric space: each sequence has a convergent "
    "subsequence, and so a continuous function on it is bounded and attains its bounds.",
    "battery life 12 h | weight 1.3 kg | 16 GB RAM | 512 GB SSD | 14-inch display",
    "She opened the letter, read it twice, and put it into the fire without a word.",
    "To reset the device, hold the power button for ten seconds until the light blinks red. "
    "Release it, wait for the light to turn green, and then follow the steps on the screen.",
    "El precio del trigo subió un tres por ciento tras las noticias sobre la sequía.",
    "Which is larger, the population of Canada or that of Poland?",
    "If the argument is None, the default encoding is used. Invalid bytes are replaced when "
    "errors='replace' is given; with errors='strict', the default, UnicodeDecodeError is raised. "
    "The method may be called several times; the last call's setting applies to what is read next.",
    "Mitochondria are found in nearly all cells of animals, plants and fungi. They make most of "
    "the cell's ATP, have a genome of their own, and descend from bacteria that once lived freely.",
    "The striker scored twice in the second half and the visitors won 3-1.",
    '{"id": 1042, "status": "shipped", "items": [{"sku": "AB-77", "qty": 2}]}',
    "Interest rates were left unchanged. The bank said that inflation had slowed for the fourth "
    "month, that wages still grew faster than output, and that it would wait for spring's figures "
    "before it decided on a cut. Markets had expected as much, and the currency hardly moved.",
    "red squirrel",
    "本网站使用 cookies 来改善您的体验。",
    "The old lighthouse keeper kept a diary for forty years. Most entries are about the weather, "
    "the ships that passed and the state of the lamp; a few, written in winter, are about a "
    "brother who had gone to sea as a boy and of whom nothing was ever heard again.",
    "Figure 3: mean temperature by month (°C), 1991-2020, stations above 1,500 m only.",
    "Is it safe to take ibuprofen and paracetamol together?",
    "A mutex protects shared state: only the thread that holds it may read or write. Two locks "
    "taken in different orders by two threads can deadlock, so take them always in the same "
    "order, hold them briefly, and never call unknown code while you hold one.",
    "https://example.org/docs/v2/install.html#linux",
    "The painting, oil on canvas, 92 by 73 cm, signed lower left, was last shown in public in "
    "1937. Its frame is original. The varnish has yellowed, and there is a repaired tear of "
    "about 4 cm near the upper edge. Estimate: 40,000 to 60,000 euros.",
    "Thanks for your message. I am out of the office until Monday and will answer then.",
    "Электростанция была построена в 1962 году и работает до сих пор.",
    "Plants in clay soil need less water than those in sand. Water in the early morning, at the "
    "root and not over the leaves, and let the upper centimetres dry before you water again.",
    "for (size_t i = 0; i < n; ++i) { total += weights[i] * inputs[i]; }",
    "The bridge, opened in 1932, carries eight lanes of traffic, two railway lines, a footway and "
    "a cycleway. Its arch spans 503 metres and its top stands 134 metres above the water. Steel "
    "parts lengthen on hot days, and hinges at both ends take up the movement; the arch may rise "
    "by as much as 18 centimetres. Some six million rivets, driven by hand, hold it together.",
    "cheap flights from Oslo to Lisbon in October",
    "Abstract. We study how small changes of the training data alter what a network predicts. On "
    "four benchmarks, leaving out one example in a thousand changed two per cent of the answers. "
    "We give a bound for linear models and show by experiment that it is loose for deep ones.",
    "Remember the milk.",
    "Usage: tool [OPTIONS] FILE...\n\nOptions:\n  -o, --output PATH  Write to PATH.\n"
    "  -v, --verbose      Say more.\n  --help             Show this message and exit.",
)
