"""The means of the grammar: names and animals, a character, and a story under way.

Notation of the templates: {a|b} chooses, [x] is there half of the time, <H> is the hero's name,
<H.he> a pronoun, <key> a value of the plot.
"""

import re

GIRLS = """Lily Mia Anna Emma Sara Lucy Ella Rosie Nina Zoe Molly Daisy Grace Ruby Amy Kate Maya Ivy Jane Clara Ada Nora
Lena Tara Hana Leila Sofia Eva Alice Penny Holly Poppy Hazel June Dora Fatima Mei Priya Amina Elsa Sue Lola""".split()
BOYS = """Tom Ben Sam Tim Max Leo Jack Finn Noah Oscar Theo Henry Peter Billy Luke Adam Owen Danny Joe Will Hugo Felix
Oliver Jacob Omar Ravi Kenji Ali Diego Pablo Ivan Arthur George Charlie Toby Eddie Mark Paul Nico Milo Bob""".split()
PETS = """Pip Coco Bella Buddy Fluffy Spot Snowy Teddy Patch Dot Bubbles Honey Pepper Nibbles Ziggy Pebble Biscuit Rusty
Whiskers Sunny Misty Clover Bramble Fern Maple Pumpkin Button Muffin Smoky Tiny""".split()
# kind: (home, food, way of moving, the young one's size words)
WOODLAND = {
    "rabbit": ("a cozy burrow under a hill", "carrots", "hopped"),
    "fox": ("a den under an old oak tree", "blueberries", "trotted"),
    "bear": ("a warm cave", "honey", "walked"),
    "mouse": ("a tiny hole under a log", "cheese", "ran"),
    "hedgehog": ("a pile of dry leaves", "apples", "walked"),
    "squirrel": ("a hole in a tall tree", "nuts", "ran"),
    "duck": ("a nest by the pond", "bread crumbs", "waddled"),
    "frog": ("a green pond", "flies", "hopped"),
    "turtle": ("a quiet corner by the river", "lettuce", "walked"),
    "owl": ("a hollow tree", "berries", "flew"),
    "bird": ("a small nest in a tree", "seeds", "flew"),
    "deer": ("a quiet part of the forest", "fresh grass", "ran"),
    "mole": ("a tunnel under the meadow", "roots", "ran"),
    "beaver": ("a house of sticks in the river", "bark", "walked"),
    "snail": ("a garden full of flowers", "leaves", "crawled"),
    "badger": ("a deep hole in the woods", "mushrooms", "walked"),
}
FARM = {
    "dog": ("a house with a red door", "bones", "ran"),
    "cat": ("a white house on the corner", "fish", "walked"),
    "puppy": ("a small house with a big yard", "biscuits", "ran"),
    "kitten": ("a yellow house", "milk", "ran"),
    "pig": ("a muddy pen on a farm", "corn", "ran"),
    "pony": ("a barn on a farm", "apples", "trotted"),
    "lamb": ("a green field on a farm", "grass", "ran"),
    "hen": ("a hen house on a farm", "corn", "walked"),
    "goat": ("a farm near the hills", "hay", "trotted"),
    "donkey": ("a farm by the road", "hay", "trotted"),
}
FAR = {
    "elephant": ("the jungle", "bananas", "walked"),
    "monkey": ("a tall tree in the jungle", "bananas", "ran"),
    "lion": ("the wide plains", "meat", "ran"),
    "penguin": ("a land of ice and snow", "fish", "waddled"),
    "giraffe": ("the wide plains", "leaves", "walked"),
    "dragon": ("a cave on a mountain", "hot soup", "flew"),
}
ANIMALS = {**WOODLAND, **FARM, **FAR}
ADJ_CHILD = ["little", "little", "little", "kind", "brave", "shy", "clever", "cheerful", "curious", "young", "small", "quiet"]
ADJ_ANIMAL = ["little", "little", "little", "small", "young", "kind", "brave", "shy", "curious", "clever", "friendly",
              "funny", "playful", "brown", "gray", "white"]
SYL = "ba be bo da di do fa fi ga jo ka ki ko la le li lo ma mi mo na ni no pa pi ra ri ro sa se si ta ti to va vi wa za zo".split()
END = ["n", "m", "l", "r", "s", "x", "", "", "", "k"]


class Who:
    """A character: what it is called never changes within a story."""

    def __init__(self, noun, g, name=None, adj="", cls="child", ref=None, call=None):
        self.noun, self.g, self.name, self.adj, self.cls = noun, g, name, adj, cls
        if adj != "little":
            short = noun
        else:
            short = f"little {noun}"
        self.ref = ref or name or f"the {short}"
        self.call = call or name or short
        self.the = f"the {noun}"
        self.he, self.him, self.his = {"f": ("she", "her", "her"), "m": ("he", "him", "his"), "n": ("it", "it", "its")}[g]
        self.himself = {"f": "herself", "m": "himself", "n": "itself"}[g]
        self.boy = {"f": "girl", "m": "boy", "n": "one"}[g]
        self.He = self.he.capitalize()
        body = f"a {adj} {noun}".replace("  ", " ")
        self.a = body
        self.intro = f"{body} named {name}" if name else body
        if cls in ("animal", "child") and noun in ANIMALS:
            self.home, self.food, self.went = ANIMALS[noun]
        else:
            self.home, self.food, self.went = "a small house", "cookies", "walked"

    def __str__(self):
        return self.ref


class Story:
    def __init__(self, rng):
        self.rng, self.v, self.parts, self.used = rng, {}, [], set()

    # -- choosing ------------------------------------------------------------------------------------
    def pick(self, *xs):
        return self.rng.choice(xs[0] if len(xs) == 1 and not isinstance(xs[0], str) else xs)

    def chance(self, p):
        return self.rng.random() < p

    def name(self, pool):
        while True:
            if self.chance(0.12):
                n = "".join(self.rng.choice(SYL) for _ in range(self.rng.choice((2, 2, 3)))) + self.rng.choice(END)
                n = n.capitalize()
            else:
                n = self.rng.choice(pool)
            if n not in self.used:
                self.used.add(n)
                return n

    def child(self, g=None):
        g = g or self.pick("f", "m")
        if self.chance(0.04):
            return Who("princess" if g == "f" else "prince", g, self.name(GIRLS if g == "f" else BOYS), self.pick(ADJ_CHILD))
        return Who("girl" if g == "f" else "boy", g, self.name(GIRLS if g == "f" else BOYS), self.pick(ADJ_CHILD))

    def animal(self, kinds=None, named=None, g=None, adj=None):
        while True:
            kind = self.pick(list(kinds or ANIMALS))
            if kind not in self.used:
                break
        self.used.add(kind)
        if named is None:
            named = self.chance(0.65)
        pool = PETS if self.chance(0.75) else GIRLS + BOYS
        n = self.name(pool) if named else None
        g = g or ("f" if n in GIRLS else "m" if n in BOYS else self.pick("f", "m"))
        if n is None and adj is None and self.chance(0.4):
            adj = "little"
        return Who(kind, g, n, adj if adj is not None else self.pick(ADJ_ANIMAL), "animal")

    def hero(self, child=0.5, kinds=None):
        return self.child() if self.chance(child) else self.animal(kinds)

    def parent(self, h):
        kind = self.pick("mom", "mom", "dad", "grandma", "grandpa", "mother", "father")
        g = "f" if kind in ("mom", "grandma", "mother") else "m"
        call = {"mother": "Mom", "father": "Dad"}.get(kind, kind.capitalize())
        return Who(kind, g, ref=f"{h.his} {kind}", call=call, cls="adult")

    # -- writing -------------------------------------------------------------------------------------
    def expand(self, t):
        def slot(m):
            key, _, attr = m.group(1).partition(".")
            x = self.v[key]
            return str(getattr(x, attr) if attr else x)

        while True:  # innermost groups first; a slot may hold groups itself
            m = re.search(r"\{([^{}\[\]]*)\}|\[([^{}\[\]]*)\]", t)
            if m:
                if m.group(1) is not None:
                    r = self.rng.choice(m.group(1).split("|"))
                else:
                    r = m.group(2) if self.chance(0.5) else ""
                t = t[: m.start()] + r + t[m.end():]
                continue
            u = re.sub(r"<([A-Za-z0-9.]+)>", slot, t)
            if u == t:
                break
            t = u
        t = re.sub(r"\s+", " ", t).strip()
        t = re.sub(r" ([,.!?])", r"\1", t)
        t = re.sub(r"\b([Aa]) (?=[aeiou](?!ne |nicorn|seful))", r"\1n ", t)
        t = re.sub(r'(^|[\s])"([a-z])', lambda m: m.group(1) + '"' + m.group(2).upper(), t)
        t = re.sub(r"(?<![.])([.!?]) ([a-z])", lambda m: m.group(1) + " " + m.group(2).upper(), t)
        t = re.sub(r'\^([a-z])', lambda m: m.group(1).upper(), t).replace("^", "")
        return t[:1].upper() + t[1:]

    def say(self, *lines):
        """Each line is one or more sentences; a line that comes out empty is dropped."""
        for t in lines:
            t = self.expand(t)
            if t:
                self.parts.append(t)

    def maybe(self, p, *lines):
        if self.chance(p):
            self.say(*lines)

    def one(self, *lines):
        self.say(self.rng.choice(lines))

    def par(self):
        if self.parts and self.parts[-1] != "\n":
            self.parts.append("\n")

    def text(self):
        out = ""
        for p in self.parts:
            out = out.rstrip(" ") + "\n\n" if p == "\n" else out + p + " "
        return out.strip()

    # -- openings ------------------------------------------------------------------------------------
    def open(self, h, habit=None, place=None):
        """Introduces the hero. Sets <D>: how the plot's first event begins."""
        v = self.v
        v["H"] = h
        v["sunny"] = self.pick("sunny", "warm", "bright", "fine", "quiet", "lovely")
        v["D"] = "{One day,|One day,|One day,|One " + v["sunny"] + " day,|One morning,|One " + v["sunny"] + " morning,|One afternoon,}"
        live = "in {a small village|a small town|a little house near the woods|a house by the sea|a big city|a little house on a hill|a village by the river|a tall house with a blue door}"
        if h.noun in ("princess", "prince"):
            live = "in a {big|white|small|golden} castle"
        if h.cls == "animal":
            live = "in " + h.home
        if h.cls == "thing":
            live = v.get("live", "in {a small town|a busy town}")
        r = self.rng.random()
        had_name = True
        if r < 0.47:
            k = self.rng.random()
            if k < 0.34:
                self.say("once upon a time, there was <H.intro>.")
            elif k < 0.46:
                self.say("once upon a time there was <H.intro>.")
            elif k < 0.60:
                self.say("once upon a time, there lived <H.intro>.")
            elif k < 0.76:
                self.say("once upon a time, " + live + ", there {lived|lived|was} <H.intro>.")
                live = None
            elif k < 0.90:
                self.say("once upon a time, <H.intro> lived " + live + ".")
                live = None
            elif h.name:
                self.say("once upon a time, there was <H.a>. <H.his> name was <H>.")
            else:
                self.say("once upon a time, {far, far away|long, long ago}, there was <H.intro>.")
        elif r < 0.57:
            self.one("there was once <H.intro>.", "there once was <H.intro>.", "there was <H.intro> who lived " + live + ".",
                     "there was <H.intro>.")
            if "lived" in self.parts[-1]:
                live = None
        elif r < 0.67:
            if h.name:
                self.one("<H> was <H.a>.", "<H> was <H.a> who lived " + live + ".", "<H> was <H.a> with {bright eyes|a big smile|a kind heart|a happy laugh}.")
            else:
                self.one("<H> lived " + live + ".", "<H> was very happy.", "<H> woke up early.")
                if "woke" in self.parts[-1]:
                    v["D"] = "{That morning,|That day,}"
                    live = None
            if "lived" in self.parts[-1]:
                live = None
        elif r < 0.72:
            self.one("long ago, there lived <H.intro>.", "a long time ago, there was <H.intro>.", "long, long ago, " + live + ", there lived <H.intro>.")
            live = None
        elif r < 0.78:
            self.say(live + ", there lived <H.intro>.")
            live = None
        elif r < 0.82 and h.name:
            self.say("this is a story about <H.intro>.")
        else:  # straight into the day
            v["D"] = "{|||Then|All at once,|That day,}"
            act = place or "{was playing outside|was out for a walk|went for a walk|went out to play|was playing in the sun}"
            self.one("one day, <H.intro> " + act + ".",
                     "one <sunny> {day|morning|afternoon}, <H.intro> " + act + ".",
                     "one day <H.intro> " + act + ".",
                     ("it was a <sunny> {day|morning}. <H> " if h.name else "it was a <sunny> {day|morning}. <H.a> ") + act + ".",
                     "<H> " + act + ".")
            if h.name and h.cls == "animal" and h.intro not in self.parts[-1]:
                self.say("<H> was <H.a>.")
            elif h.name and h.cls == "child" and h.intro not in self.parts[-1]:
                self.maybe(0.4, "<H> was <H.a>.")
            return
        if live and self.chance(0.35):
            self.say("<H.he> lived " + live + ".")
        if habit:
            self.maybe(0.85, habit)
        elif self.chance(0.6):
            self.trait(h)

    def trait(self, h):
        if h.cls == "child":
            self.one("<H> loved to {sing|draw|read books|run and jump|play outside|climb trees|dance|look at the clouds|ask questions}.",
                     "<H.he> had {a big smile and a kind heart|a red hat that <H.he> wore every day|many toys, but <H.his> favorite was a small blue car|curly hair and bright eyes}.",
                     "<H.he> {lived with|had} <H.his> {mom and dad|grandma|mom and a fat orange cat|dad and a big brown dog}.",
                     "everyone in the {street|village} knew <H.him>, because <H.he> always {smiled|said hello|had a kind word}.",
                     "every {morning|day}, <H.he> {fed the birds|watered the flowers|ran to the window to look at the sky}.")
        else:
            self.one("<H.he> loved to {play|run in the grass|look at the clouds|sing|sleep in the sun|make new friends}.",
                     "<H.he> loved to eat <H.food>.", "<H.his> favorite food was <H.food>.",
                     "<H> was {always happy|never in a hurry|kind to everyone|good at finding things}.",
                     "every {morning|day}, <H.he> <H.went> {to the river|around the big tree|down the path} and said hello to everyone.")

    # -- endings -------------------------------------------------------------------------------------
    def close(self, *lines, lesson=None, friends=None):
        self.par() if self.chance(0.5) else None
        self.one(*lines)
        if lesson and self.chance(0.5):
            self.one("<H> {learned|had learned} that " + lesson + ".", "from that day on, <H> {knew|never forgot} that " + lesson + ".",
                     "that day, <H> learned that " + lesson + ".")
        elif friends and self.chance(0.5):
            self.say("and from that day on, <H> and " + friends + " were {best friends|good friends|the best of friends}.")
        self.maybe(0.22, "{The end.|The end.|And they all lived happily ever after.}" if friends else "The end.")
