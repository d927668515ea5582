"""Word banks of the simulated platform: what its people write besides key terms."""

from __future__ import annotations

STOP_WORDS = tuple(
    """
    the and of to a in is it for with on this that you my we at by from are was as have be so
    not but all more when how your our they me his her
    """.split()  # noqa: SIM905
)

COMMON_WORDS = tuple(
    """
    new time day good best first little way today full part great make life home back long
    easy big real old next last every quick simple small story place friends world night week
    year people thing things watch look find start end show try learn tips guide minute
    morning weekend series episode special live update review moment favourite family inside
    outside around together perfect different secret happy crazy fun cool nice free top five
    three ten hours minutes days work working love like want need know think feel keep going
    come take give tell ask turn move run walk sit stand open close build break fix change
    help plan idea ideas trick tricks reason reasons question answer beginner advanced level
    challenge test result results before after during without between almost really finally
    never always again still maybe probably actually honest amazing wonderful beautiful
    strange quiet loud bright dark warm cold soft hard heavy light fresh clean early late slow
    fast cheap price budget money sale summer winter spring autumn rain sun city street house
    room garden kitchen road trip school office market shop festival party holiday birthday
    group team player winner channel camera video clip picture sound voice journey history
    future memory dream surprise mistake problem solution detail view version edition
    collection project hobby skill habit routine lesson session workshop event season
    """.split()  # noqa: SIM905
)

PRODUCT_WORDS = ("set", "kit", "case", "pack", "mount", "holder", "bundle", "tool")

STEMS = tuple(
    """
    river stone glass cloud iron copper silver paper cotton velvet amber cedar maple willow
    ember frost storm shadow harbor meadow canyon island valley desert thunder crystal marble
    bronze lantern anchor feather bramble juniper saffron pepper ginger clover thistle
    """.split()  # noqa: SIM905
)
ENDINGS = tuple(
    """
    forge craft weave carve spin drift glide leap climb dive toss brew bake roast smith bloom
    graft stitch mould press fold cast chord beat tune step stance grip swing kick
    """.split()  # noqa: SIM905
)

ROOTS = (
    "sport", "music", "food", "travel", "craft", "games", "nature", "science",
    "fashion", "fitness", "film", "tech", "motor", "pets", "books", "art",
)  # fmt: skip
BRANCHES = ("indoor", "outdoor", "classic", "modern")

SPAM_TAGS = ("#fyp", "#viral", "#follow", "#like4like", "#trending", "#foryou", "#explore", "#f4f")

PRAISE = (
    "so cool", "love it", "first", "wow", "amazing", "best video ever", "lol", "nice one",
    "this made my day", "more please", "who is watching today", "great work", "haha", "beautiful",
)  # fmt: skip
SPAM = (
    "visit my channel for free gifts", "click the link in my profile", "earn money at home now",
    "cheap followers here", "subscribe and i subscribe back", "hot deals at my shop",
)  # fmt: skip
REMARKS = (  # around a key term
    ("the way you explain ", " helped me a lot"),
    ("i never understood ", " before this"),
    ("where can i learn more about ", ""),
    ("", " is what i came for"),
    ("please make another one on ", ""),
    ("that ", " at the end was perfect"),
    ("my brother does ", " every week and this is right"),
    ("is ", " hard for a beginner"),
)
