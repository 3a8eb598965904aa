"""The plots: each introduces its characters, tells what happens to them, and ends. Notation: grammar.py."""

import re

from grammar import ANIMALS, BOYS, FAR, FARM, GIRLS, PETS, WOODLAND, Who

# ---- words of the plots ------------------------------------------------------------------------------
TOYS = [  # noun phrase, short noun, what one does with it, places it may hide
    ("a red ball", "ball", "throw it high into the air", ["under a bush", "in the tall grass", "behind the shed"]),
    ("a blue ball", "ball", "kick it across the yard", ["behind the tree", "in the flower bed", "under the bench"]),
    ("a soft teddy bear", "teddy bear", "hug it at night", ["under the bed", "behind the sofa", "in the laundry basket"]),
    ("a toy boat", "boat", "float it on the pond", ["between the reeds", "under the bridge", "behind a big stone"]),
    ("a green hat", "hat", "wear it everywhere", ["on a branch", "behind the door", "under a pile of leaves"]),
    ("a shiny coin", "coin", "look at it in the sun", ["in the sand", "under the mat", "between two stones"]),
    ("a silver bell", "bell", "ring it every morning", ["in the hay", "under a leaf", "in the long grass"]),
    ("a little drum", "drum", "play a song on it", ["behind the barn", "under a blanket", "in an old box"]),
    ("a yellow scarf", "scarf", "wear it on cold days", ["on the fence", "on a rose bush", "under the bench"]),
    ("a wooden horse", "horse", "take it on long trips", ["under the stairs", "behind the door", "in the toy box"]),
    ("a rag doll", "doll", "sing to it", ["under the chair", "in the garden", "behind the sofa"]),
]
PLACES = [  # in, to, what one sees
    ("in the forest", "to the forest", "tall green trees"), ("in the park", "to the park", "children on the swings"),
    ("by the river", "to the river", "silver fish in the water"), ("on the beach", "to the beach", "shells in the sand"),
    ("in the meadow", "to the meadow", "yellow flowers and bees"), ("in the garden", "to the garden", "roses and butterflies"),
    ("by the pond", "to the pond", "ducks on the water"), ("on the hill", "to the hill", "the whole valley"),
]
FOODS = ["a big red apple", "a basket of berries", "a loaf of warm bread", "a chocolate cake", "a bag of nuts", "a cherry pie",
         "a jar of honey", "a bowl of soup", "a plate of cookies", "a juicy pear", "three pancakes", "a big cheese sandwich"]
SKY = ["the moon", "the stars", "the snow", "the rain", "the sunset"]


def short(np):
    """'a basket of berries' -> 'basket of berries'"""
    return re.sub(r"^(a|an|three) ", "", np)


# ---- plots -------------------------------------------------------------------------------------------
def lost_toy(s):
    h = s.hero(0.6, {**WOODLAND, **FARM})
    np, toy, use, spots = s.pick(TOYS)
    s.v.update(np=np, toy=toy, use=use, spot=s.pick(spots))
    p = s.parent(h) if h.cls == "child" and s.chance(0.6) else s.animal(WOODLAND, named=s.chance(0.6))
    s.v["F"] = p
    s.open(h, "<H> had <np>. {<H.he> loved to <use>.|It was <H.his> favorite thing in the whole world.}", "was playing with <np>")
    if "<np>" and np not in " ".join(s.parts):
        s.say("<H> had <np>{. It was {very special|<H.his> favorite thing}| and loved it very much}.")
    s.par()
    s.one("<D> the <toy> was gone. <H> {did not know where it was|could not find it anywhere}.",
          "<D> <H> could not find <H.his> <toy>. {It was gone!|It was not in its place.}")
    s.one('"Where is my <toy>?" {cried|asked|said} <H>.', '"Oh no!" {cried|said} <H>. "My <toy> is gone!"', "<H> felt very sad{| and began to cry}.")
    if s.chance(0.75):
        a, b = s.rng.sample(["under the table", "behind the gate", "near the well", "by the old wall", "next to the steps", "under the big tree"], 2)
        s.v.update(s1=a, s2=b)
        s.one("<H.he> looked <s1>. <H.he> looked <s2>. But the <toy> was not there.",
              "<H.he> looked <s1> and <s2>, but {there was no <toy>|the <toy> was not there}.",
              "first, <H.he> looked <s1>. Then <H.he> looked <s2>. {No <toy>!|The <toy> was nowhere.}")
    s.par()
    if p.cls == "adult":
        s.one('<F> saw that <H> was sad. "{What is wrong|Why are you crying|What happened}, <H.call>?" <F.he> asked.',
              '<H> went to <F>. "{I lost|I can not find} my <toy>," <H.he> said.')
        s.one('"{Do not worry|Do not be sad}," said <F>. "{We will look for it together|Let us look together}."',
              '"Where did you {play with it last|see it last}?" asked <F>. <H> {thought and thought|thought hard}. Then <H.he> {smiled|remembered}.')
        s.one("They looked and looked. At last, {they found the <toy>|there was the <toy>}, <spot>!", "Together they {searched|looked} everywhere. Then <H> saw something <spot>. It was the <toy>!")
        s.say('"{Thank you|Oh, thank you}, <F.call>!" said <H>, and <H.he> gave <F.him> {a big hug|a kiss}.')
        s.close("<H> {held|kept} the <toy> close {all day|all evening|until bedtime}. <H.he> was happy again.",
                "that night, <H> put the <toy> {next to <H.his> bed|on a shelf}, so that it would never be lost again.",
                "after that, <H> always put the <toy> back in its place.",
                lesson="it is good to ask for help")
    else:
        s.one('<F.intro> {heard <H.him>|saw that <H> was sad|came by}. "{What is wrong|Why are you sad|Are you all right}?" asked <F>.',
              'Just then, <H> met <F.intro>. "{Why do you look so sad|What is the matter}?" asked <F>.')
        s.say('"I {have lost|lost|can not find} my <toy>," said <H>.')
        s.one('"I can help you," said <F>. "{I have good eyes|Two can look better than one|I know every corner here}."', '"{Let us look together|I will help you look}!" said <F>.')
        s.one('They looked and looked. Then <F> {called|shouted}, "{Come here|Look}! I see something <spot>!"', "After a while, <F> found something <spot>.")
        s.one("It was the <toy>!", "<H> ran to see. It was the <toy>!")
        s.say('"{Thank you|Thank you so much|Oh, thank you}, <F.call>!" said <H>. [<H.he> {jumped for joy|laughed and danced}.]')
        s.close("<H> and <F> played with the <toy> until {the sun went down|it was time to go home|the stars came out}.",
                "<H> let <F> have a turn with the <toy>. They {played all day|laughed all afternoon}.",
                friends="<F>", lesson="{friends make everything easier|it is good to have help}")


def lost_young(s):
    h = s.hero(0.7, WOODLAND)
    s.v["F"] = f = s.animal({k: ANIMALS[k] for k in ("duck", "kitten", "puppy", "bird", "rabbit", "lamb", "squirrel", "mouse", "penguin") if k != "penguin"}, named=False, adj=s.pick("tiny", "lost", "small"))
    f.ref = f"the {f.noun}"
    pl = s.pick(PLACES)
    s.v.update(inp=pl[0], to=pl[1])
    s.open(h, None, "was walking <inp>")
    s.par()
    s.one("<D> <H> heard a {small|soft|sad} {sound|voice}. It came from {behind a bush|under a bench|a pile of leaves|the tall grass}.",
          "<D> <H> saw something move {behind a bush|under a bench|in the tall grass}.")
    s.one("<H.he> looked closer. There was <F.a>, all alone.", "It was <F.a>. It was {cold and wet|shaking|all alone|crying}.", "<H.he> found <F.a> there. [It looked very scared.]")
    f.he, f.him, f.his = "it", "it", "its"
    s.one('"Are you lost?" asked <H>.', '"{Hello|Hello there}, little one," said <H>. "{Where is your mother|Are you lost}?"', '"Do not be afraid," said <H>{| softly}. "I will help you."')
    s.one('"I can not find my mother," said <F>.', "<F> looked up with {big|sad} eyes.", '"I want to go home," {cried|said} <F>.')
    s.par()
    s.one("<H> {gave it some food and water|shared <H.his> food with <F>|put <H.his> scarf around <F>}. Then they went to look for {its mother|the mother}.",
          '<H> {picked it up gently|took it by the hand|stayed close to it}. "{We will find her|We will find your mother|I know what to do}!"' if h.cls == "child" else '"{We will find her|We will find your mother|Come with me}!" said <H>.')
    s.one("They {looked|walked} {down the path|along the fence|past the old mill} and {over the bridge|around the pond|through the grass}.", "They asked everyone they met, {but no one knew|but no one could help}.", "They walked and walked. [<F> was tired, but <H> did not give up.]")
    s.one("At last, they heard {someone calling|a loud call}. It was the mother <F.noun>!", 'Then, {near the river|near a big tree|by the old gate}, they saw a big <F.noun>. "Mother!" cried the little one.', "Suddenly, <F> {jumped up|gave a happy cry}. There was its mother!")
    s.one("<F> ran {to her|into her arms}. The mother was so happy.", "The mother {hugged her little one|held her little one close} and {would not let go|cried with joy}.")
    s.close('"{Thank you for bringing my baby home|Thank you, kind <H.boy>|You are a true friend}!" said the mother. <H> {smiled all the way home|felt warm and happy inside}.',
            "<H> waved goodbye and went home. <H.he> felt {happy|very proud|warm inside}.",
            "From then on, <F> came to visit <H> {every day|every spring|many times}.",
            lesson="{helping others makes your own heart happy|even the small can do big things}")


FEARS = [
    ("the dark", "the lamp went out", "{In the dark, <H.he> saw strange shapes on the wall.|The room was black, and something went creak.}",
     "The shapes were only {<H.his> coat and <H.his> hat|the curtains and a chair}", "the dark is only the day with its eyes closed", "{turned off the lamp|went to bed without a light}"),
    ("thunder", "a big storm came", "{The thunder went boom, boom, boom!|There was a bright flash, and then a loud boom.}",
     "The storm was only {clouds bumping together|the sky playing a big drum}", "thunder is only a loud noise", "{listened to the thunder and laughed|counted the booms}"),
    ("water", "all the others went swimming", "{The water looked deep and cold.|<H.he> put in one foot and jumped back.}",
     "The water was {soft and warm|cool and nice}", "water can be fun", "{jumped in with a big splash|swam all the way across}"),
    ("high places", "<H.his> kite got stuck in a tree", "{The tree was so tall!|<H.his> legs shook when <H.he> looked up.}",
     "The branches were {strong|like the steps of a ladder}, and soon <H> had the kite back", "even a tall tree is climbed one step at a time", "{climbed to the very top|sat on a high branch and looked at the view}"),
    ("the big slide", "they all went to the playground", "{The slide was very high.|<H.he> stood at the bottom and looked up.}",
     "The slide was {smooth and fast|not so high after all}", "new things can be fun", "{went down the slide ten times|laughed all the way down}"),
    ("the deep forest", "<H.he> had to go through the trees", "{The trees were tall and dark.|Leaves moved and twigs snapped.}",
     "The sounds were only {birds and the wind|squirrels at play}", "the forest is full of friends", "{walked through the trees with a song|went into the forest to pick berries}"),
]


def afraid(s):
    h = s.hero(0.65, {k: ANIMALS[k] for k in ("rabbit", "fox", "bear", "mouse", "squirrel", "kitten", "puppy", "monkey", "lion")})
    fear, when, look, truth, lesson, then = s.pick(FEARS)
    s.v.update(fear=fear, when=when, look=look, truth=truth, then=then)
    s.v["F"] = f = s.parent(h) if s.chance(0.6) else (s.child() if h.cls == "child" else s.animal(WOODLAND, named=True))
    s.v["big"] = s.pick("very", "so")
    s.open(h, "<H> was {afraid|very afraid} of <fear>.", "{was playing with some friends|was at home|had a quiet day}")
    if fear not in " ".join(s.parts):
        s.say("<H> was {brave in many ways|happy most of the time}, but <H.he> was afraid of <fear>.")
    if f.name:
        s.say("<H.his> {best friend|friend} was <F.intro>.")
    s.par()
    day = s.v["D"]
    s.v["D"] = "{One night,|One evening,}" if fear in ("the dark", "thunder") else day
    s.say("<D> <when>. <look>")
    s.one("<H>'s heart went thump, thump, thump.", "<H> {wanted to run away|hid behind <F>|closed <H.his> eyes|began to shake}.", '"I am scared," {said|whispered} <H>.')
    s.par()
    s.one('"{I am here with you|Take my hand|I will stay with you}," said <F>. "{We can do it together|Let us try it together|You are braver than you think}."',
          '<F> came {close|to <H>}. "{It is all right to be afraid|Everyone is afraid of something}," <F.he> said. "{Being brave means you try anyway|We will do it together|Let us look at it together}."')
    s.one("<H> took a deep breath. {Then <H.he> opened <H.his> eyes.|One, two, three!|Slowly, <H.he> looked again.}", '<H> {held on tight|thought about it}. "All right," <H.he> said. "I will try."')
    s.one("<truth>!", "<truth>. It was not so bad!", "And what do you think? <truth>!")
    s.one('<H> {laughed|smiled|began to laugh}. "{I did it|That was not so bad|I am not afraid anymore}!" <H.he> said.', '"You see?" said <F>. "{I knew you could do it|You are very brave}."')
    s.close("The next {time|day}, <H> <then> all by <H.himself>." if "water" not in fear else "The next day, <H> <then>.",
            "From then on, <H> was {a little braver every day|not so afraid anymore}.",
            "That night, <H> {slept well|fell asleep with a smile}. <H.he> was {proud|very proud} of <H.himself>.",
            lesson=s.pick(lesson, "being brave means trying even when you are afraid"))


def sharing(s):
    h = s.hero(0.5, {**WOODLAND, "pig": FARM["pig"], "monkey": FAR["monkey"]})
    food = s.pick(FOODS)
    s.v.update(food=food, sf=short(food), it="them" if food.startswith("three") else "it")
    s.v["F"] = s.child() if h.cls == "child" and s.chance(0.6) else s.animal(WOODLAND)
    f = s.v["F"]
    s.open(h, None, "had <food>")
    s.par()
    if food not in " ".join(s.parts):
        s.one("<D> <H> {found|got|was given} <food>. {It smelled so good!|<H.he> was very happy.|How good it looked!}" if s.v["it"] == "it" else "<D> <H> got <food>. <H.he> was very happy.")
    s.one('"{This is all for me|I will eat <it> all|Yum}!" said <H>.', "<H> sat down {under a tree|on a bench|in the shade} to eat <it>.", "<H.his> tummy {made a loud sound|was empty}, and <H.he> could not wait to eat.")
    s.one("Then <F.intro> {came by|came along|walked up to <H.him>}. " + ("<F> looked {tired and hungry|very hungry|thin and sad}." if f.name else "<F.he> looked {tired and hungry|very hungry|thin and sad}."),
          "Just then, <H> saw <F.intro>. " + ("<F> had nothing to eat." if f.name else "<F.he> had nothing to eat."))
    s.one('"{May I have some|Can I have a little bit|Could you share with me}?" asked <F>. "{I have not eaten all day|I am so hungry|I have no food}."', '"That {looks|smells} {good|wonderful}," said <F>{| in a small voice}.')
    s.par()
    if s.chance(0.5):
        s.one('"No!" said <H>. "It is {mine|all mine}!"', '<H> {shook <H.his> head|turned away}. "{It is mine|There is not enough for two}," <H.he> said.')
        s.one("<F> {walked away|went away} {sadly|with a tear in <F.his> eye}.", "<F> {looked at the ground|said nothing} and went away.")
        s.one("<H> {took a bite|began to eat}, but {it did not taste good|it did not taste as good as before|something felt wrong}. <H.he> {felt bad|felt all alone|thought about <F>}.")
        s.one('<H> {ran after|went to find} <F>. "{Please come back|Wait|I am sorry}!" <H.he> {called|said}. "{Let us eat together|There is enough for both of us|I want to share with you}."')
    else:
        s.one("<H> {thought for a moment|looked at <F>|looked at the food}. {It was not very much for two.|<H.he> wanted to eat it all alone.|<H.he> was hungry too.}", "<H> knew how it feels to be hungry.")
        s.one('Then <H> {smiled|made room}. "{Come and sit with me|Here, this half is for you|Of course|There is enough for two}," <H.he> said.')
    s.one("They {shared the food|ate together} {and talked and laughed|under the blue sky|until the last crumb was gone}.", "<H> gave half to <F>. They {sat side by side|ate and talked}.")
    s.one("It was the best meal <H> {had ever had|could remember}.", '<F> {smiled|was so happy}. "{You are very kind|Thank you, friend|Thank you for sharing}," <F.he> said.', "Somehow, the food tasted even better than before.")
    s.close("The next day, <F> came back with {a surprise|something behind <F.his> back}. It was {a bag of sweet plums|a basket of strawberries|a flower}, just for <H>!",
            "When they were done, they {played|danced|sang songs} until {the sun went down|it was dark}.",
            "After that, <H> and <F> {shared everything|ate together every day|met under the same tree every day}.",
            friends="<F>", lesson="{sharing makes everything better|food tastes better with a friend|a shared meal is twice as good}")


MAKES = [  # thing, material line, trouble, fix, final
    ("a kite", "{some paper, two sticks and a long string|an old sheet, two sticks and some string}", "it {fell to the ground|would not fly|went up a little and fell down}", "It {is too heavy|needs a tail}", "added a long tail", "flew high above the {trees|roofs}"),
    ("a little house of sticks", "{sticks and leaves|long sticks from the forest}", "the {walls|sticks} fell down", "The ground is too soft here", "built it on a flat stone", "stood strong, even in the wind"),
    ("a boat", "{wood and some rope|a box and a piece of cloth}", "it {tipped over|filled with water|sank}", "There is a hole in it", "closed the hole", "sailed {across the pond|down the stream}"),
    ("a cake", "flour, eggs and {milk|honey}", "it {came out flat|was as hard as a stone|burned}", "You must watch the oven", "mixed it all again and watched the oven", "came out {soft and sweet|golden and round}"),
    ("a tower of blocks", "{all the blocks in the box|big blocks and small blocks}", "it {fell down with a crash|began to shake and fell}", "The big blocks must go at the bottom", "put the big blocks at the bottom", "was as tall as {a chair|the table|the door}"),
    ("a sand castle", "{wet sand and shells|sand and a small bucket}", "a wave {washed it away|came and took it away}", "We are too close to the water", "moved away from the water", "had four towers and a flag of seaweed"),
    ("a snowman", "{a lot of clean white snow|three big balls of snow}", "the head {fell off|rolled away}", "The snow must be pressed hard", "pressed the snow hard", "had {a carrot nose|two black eyes} and a warm scarf"),
    ("a swing", "a board and {a rope|two ropes}", "{the rope broke|the board fell down}", "The rope is too old", "used a new rope", "went up and down, up and down"),
]


def making(s):
    h = s.hero(0.65, {k: ANIMALS[k] for k in ("rabbit", "fox", "bear", "mouse", "squirrel", "beaver", "monkey", "badger", "hedgehog")})
    thing, mat, trouble, why, fix, final = s.pick(MAKES)
    s.v.update(thing=thing, t=re.sub(r"^a (little )?", "", thing).replace(" of sticks", ""), mat=mat, trouble=trouble, why=why, fix=fix, final=final)
    s.v["F"] = f = s.parent(h) if h.cls == "child" and s.chance(0.5) else (s.child() if h.cls == "child" else s.animal(WOODLAND, named=True))
    s.open(h, "<H> loved to {make|build} things.", "wanted to make <thing>")
    s.par()
    if thing not in " ".join(s.parts):
        s.one("<D> <H> wanted to {make|build} <thing>." if "cake" not in thing else "<D> <H> wanted to {make|bake} <thing>.", '<D> <H> had an idea. "I will make <thing>!" <H.he> said.')
    s.say("<H> {took|got|found} <mat>. <H.he> worked {all morning|very hard|for a long time}{.| and sang a little song.}")
    s.one("But {then|at the end|when <H.he> was almost done}, " + trouble + ".")
    s.one('"{It will never work|I can not do it|This is too hard}," said <H>, and <H.he> {wanted to give up|sat down on the ground|felt like crying}.', '<H> {was angry|was very sad}. "{I give up|I am no good at this}!" <H.he> said.')
    s.par()
    if f.cls == "adult":
        s.say("<F> {sat down next to <H.him>|came to look|smiled at <H.him>}.")
    else:
        s.say("{Then|Just then,} <F.intro> came {by|along|to look}.")
    s.one('"{I see the trouble|Let me see|I think I know why}," said <F>. "<why>. {Let us try again.|Try once more!|Shall we try again together?}"',
          '"Do not give up," said <F>. "<why>. {You are so close|You can do it|We can fix it}."')
    s.one("So {they|<H> and <F>} " + fix + ". {They worked side by side.|It took a long time.|They did it slowly and with care.}", "This time, they " + fix + ".")
    s.one("And {look|this time it worked|it worked}! The <t> " + final + ".", "When they were done, the <t> " + final + ".")
    s.one('"{We did it|It works|Look at that}!" {cried|shouted|said} <H>.', "<H> {jumped up and down|clapped and laughed|was so proud}.")
    s.close("<H> and <F> {shook hands|were tired but happy|danced around the <t>}." if "cake" not in thing else "<H> and <F> ate the cake together. It was {delicious|the best cake ever}.",
            '"{Thank you for your help|I could not have done it alone}," said <H>. "{You did the hard part yourself|You only had to try again}," said <F>.',
            "The next day, <H> {wanted to make another one|showed it to everyone}.",
            lesson="{you must try again when things go wrong|it is good not to give up|mistakes help you learn}")


GOALS = [
    ("the sea", "see the sea", "blue water {as far as the eye could see|and white waves}"), ("the top of the hill", "climb to the top of the hill", "the whole valley, with tiny houses {and fields|and a silver river}"),
    ("<H.his> grandmother's house", "visit <H.his> grandmother", "a warm light in the window and <H.his> grandmother at the door"),
    ("the big lake", "see the big lake", "the lake, {as smooth as glass|blue and wide}"), ("the end of the rainbow", "find the end of the rainbow", "a field full of flowers in all colors"),
    ("the old castle", "see the old castle", "the castle, with {its gray towers|a flag on the tower}"), ("the waterfall", "find the waterfall", "the waterfall, {shining in the sun|with a little rainbow over it}"),
]
BARS = [
    ("a {wide|deep} river", "{There was no bridge.|The water was too deep.}", ["duck", "turtle", "beaver"], '"I {can take you across|know a place with stones to step on}," said <F>.'),
    ("a dark forest", "{The path was gone.|There were so many paths!}", ["owl", "fox", "deer"], '"I know {the way|every path here}. Follow me," said <F>.'),
    ("a high wall of rocks", "{It was too high to climb.|There was no way around.}", ["goat", "mole", "bird"], '"There is a small tunnel {over there|behind that bush}," said <F>. "I will show you."'),
    ("a field of tall grass", "{<H> could not see over the grass.|Which way was it?}", ["bird", "mouse", "giraffe"][:2], '"I know this field well," said <F>. "Come with me."'),
]


def journey(s):
    h = s.hero(0.5, WOODLAND)
    goal, want, see = s.pick(GOALS)
    bar, why, kinds, offer = s.pick(BARS)
    s.v.update(goal=goal, want=want, see=see)
    s.v["F"] = s.animal([k for k in kinds if k != h.noun])
    s.open(h, "<H> {wanted to|dreamed that one day <H.he> would} <want>. [<H.he> thought about it every {day|night}.]", "wanted to <want>")
    s.par()
    if "want" not in " ".join(s.parts) and "dream" not in " ".join(s.parts):
        s.say("<D> <H> {wanted|made up <H.his> mind} to <want>.")
        s.say("<H.he> packed {some bread and an apple|a small bag|some food and a bottle of water} and {set off|started to walk}.")
    else:
        s.say("<D> <H.he> packed {some bread and an apple|a small bag|some food and a bottle of water} and {set off|started to walk}.")
    s.one("The {sun was shining|birds were singing|sky was blue}, and <H> {hummed a tune|felt happy|walked and walked}.", "<H> walked {up a hill and down a hill|past fields and farms|all morning}.")
    s.say("{After a while|Soon|Before long}, <H> came to " + bar + ". " + why)
    s.one('"{Oh dear|Oh no}," said <H>. "{What shall I do|How will I get there now}?"', "<H> {sat down on a stone|did not know what to do}.")
    s.par()
    s.one('<F.intro> came closer. "{Where are you going|Can I help you|What is wrong}?" <F.he> asked.',
          'Then <H> saw <F.intro>. "Hello! Can you help me?" asked <H>.')
    if s.chance(0.6):
        s.say('"I {want to|would like to} <want>," said <H>.') if "<H.his>" not in want else s.say('"I want to visit my grandmother," said <H>.')
    s.say(offer)
    s.one("So they went on together. [<F> told {funny|long} stories on the way.]", "<H> was {so glad|very happy}. They {went on|walked on} side by side.", "With the help of <F>, it was {easy|not hard at all}.")
    s.one("When the sun {was low|began to set|was high in the sky}, they {came to <goal>|were there}.", "At last, they {came to|reached} <goal>.")
    s.say("<H> saw " + see + '. {It was more beautiful than in <H.his> dreams.|"How beautiful!" <H.he> said.|<H.he> could not stop smiling.}' if "grand" not in want else "<H> saw " + see + '. {<H.he> ran as fast as <H.he> could.|"Come in, come in!" she said.}')
    s.close("They {sat there|stayed} for a long time and shared the {bread|food}. Then they went home together." if "grand" not in want else "They all had {tea and cake|hot soup} by the fire. What a good day it was!",
            '"{Thank you|I am glad I met you}, <F.call>," said <H>. "{The way was as nice as the end|Without you I would still be sitting on a stone}."',
            "That night, <H> slept under the stars and dreamed {happy dreams|of the next trip}." if "grand" not in want else "That night, <H> slept in a soft bed and dreamed happy dreams.",
            friends="<F>", lesson="{a long way is short with a friend|every trip starts with one small step}")


def lonely(s):
    h = s.hero(0.4, {**WOODLAND, **FAR})
    s.v["F"] = f = s.child() if h.cls == "child" else s.animal(ANIMALS, named=s.chance(0.8))
    pl = s.pick(PLACES)
    s.v.update(inp=pl[0], to=pl[1])
    s.v["game"] = s.pick("hide and seek", "tag", "ball", "a game with stones", "house", "pirates")
    s.open(h, "<H> {had no friends|was often lonely|did not have anyone to play with}. [<H.he> was too shy to talk to the others.]", "sat all alone <inp>")
    s.par()
    s.one("<D> <H> {saw|watched} " + ("some children" if h.cls == "child" else "the other animals") + " play <inp>.",
          '<D> <H> sat <inp> and {looked at the sky|felt sad}. "I wish I had a friend," <H.he> said.')
    s.one("<H> {wanted to play too|wanted to say hello}, but <H.he> {did not know what to say|was too shy}.", "It is not easy to be {alone|the only one with no friend}.", "")
    s.one("Then <F.intro> {came up to|sat down next to} <H.him>.", "Then <H> saw <F.intro>, who was {alone too|sitting under a tree, all alone}.", "Just then, <F.intro> came along. [<F.he> had {a big smile|a ball under <F.his> arm|a flower in <F.his> hand}.]" if f.cls == "child" else "Just then, <F.intro> came along.")
    s.par()
    s.one('"{Hello|Hi}," said <F>. "{What is your name|Do you want to play with me|Why are you all alone}?"', '"{Hello|Hi}," said <H>{| in a very small voice}. "{Do you want to play|May I sit with you}?"')
    if h.name and f.name:
        s.say('"{I am|My name is} <H>," said <H>. "{I am|My name is|And I am} <F>," said <F>.' if s.chance(0.5) else "")
    s.one("They played <game>. They {laughed and laughed|ran and laughed|played until they were tired}.", "Soon they were playing <game>. {What fun it was!|<H> forgot to be shy.}")
    s.one('"{You are fun to play with|I like you|I like playing with you}," said <F>. "{I like you too|You are my first friend|So are you}," said <H>.', "<H> {had never laughed so much|felt as light as a feather|was not sad anymore}.")
    s.close('When it was time to go home, <F> said, "{Will you come back tomorrow|See you tomorrow|Can we play again tomorrow}?" "{Yes|Oh yes|Of course}!" said <H>.' if s.chance(0.5) else "The next day, they met again <inp>, and the day after that, too.",
            "After that, <H> was never lonely again.",
            "From that day, they {met|played together} <inp> {every day|every afternoon}.",
            friends="<F>", lesson="{a friend may be only one hello away|it is good to say hello first}")


GIFTS = ["a cake with candles", "a small wooden box", "a bunch of flowers", "a warm blue scarf", "a picture of a rainbow", "a new book", "a red kite", "a tiny music box"]


def birthday(s):
    h = s.hero(0.6, {**WOODLAND, **FARM})
    s.v["F"] = f = s.child() if h.cls == "child" else s.animal(WOODLAND, named=True)
    s.v.update(gift=s.pick(GIFTS), n=s.pick("five", "six", "seven", "eight"))
    s.open(h, None, "woke up and jumped out of bed")
    s.par()
    s.one("<D> it was <H>'s birthday. [<H.he> was <n> years old.]" if s.v["D"].startswith("{One") else "It was <H>'s birthday. [<H.he> was <n> years old.]") if h.name else s.say("<D> it was the <H.noun>'s birthday." if s.v["D"].startswith("{One") else "It was the <H.noun>'s birthday.")
    s.one("<H> {ran to see <H.his> friends|went outside}, but {no one said a word about it|no one was there}.", '<H> waited for someone to say "Happy birthday!" But no one {did|came}.')
    s.one('<H> went to <H.his> best friend, <F.intro>. "{I am sorry, I have no time|I have so much to do today}," said <F>, and {ran away|hurried off}.')
    s.one('"{They have all forgotten|No one remembers my birthday}," {thought|said} <H>. <H.he> {walked home slowly|felt very sad|sat alone under a tree}.')
    s.par()
    s.one("In the evening, <H> {opened the door|came home}. It was dark. Then, all at once, the {lights|lamps} went on!", "When the sun went down, <H> saw {a light in the garden|many small lights between the trees}. <H.he> went closer.")
    s.say('"{Surprise|Happy birthday}{|, <H.call>}!" {shouted|cried} {all <H.his> friends|everyone}.')
    s.one("There were balloons, {music and games|a long table and many good things to eat}.", '<F> had <gift>. "{This is for you|I made it for you|We worked on it all day}," said <F>.' if "book" not in s.v["gift"] and "box" not in s.v["gift"] else '<F> had <gift>. "This is for you," said <F>.')
    s.one('"I thought you had {all forgotten|forgotten me}!" said <H>. "{Never|How could we forget you|We could never forget you}!" said <F>.', "<H> {laughed and cried at the same time|did not know what to say|was so happy}.")
    s.close("They {danced and sang|ate cake and played games} until {late|the moon was high}. It was the best birthday of all.",
            "<H> made a wish. But <H.he> {already had|had} everything <H.he> wanted: {good friends|<H.his> friends}.",
            '"{This is the best day of my life|Thank you, everyone}," said <H>, and {everyone cheered|they all danced}.',
            lesson="{good friends do not forget|friends are the best present}")


BREAKS = [("a vase", "vase", "on the table", "bumped into the table"), ("a blue cup", "cup", "on the shelf", "pulled at the shelf"),
          ("a window", "window", "of the kitchen", "kicked the ball too hard"), ("the big lamp", "lamp", "in the corner", "ran too fast"),
          ("a plate", "plate", "in the kitchen", "danced around with a plate"), ("the honey pot", "pot", "on the top shelf", "climbed up to get some honey")]


def truth(s):
    h = s.hero(0.8, {k: ANIMALS[k] for k in ("bear", "kitten", "monkey", "fox", "mouse", "rabbit")})
    np, n, where, did = s.pick(BREAKS)
    s.v.update(np=np, n=n, where=where, did=did)
    s.v["P"] = s.parent(h)
    s.v["C"] = s.pick("the cat", "the wind", "the dog", "my little brother")
    s.open(h, None, "was playing {in the house|at home}")
    s.par()
    s.say("<D> <H> <did>. {Crash!|There was a loud crash.|Bang!} The <n> <where> {was broken|broke|fell down and broke} {into many pieces|}." if n != "window" else "<D> <H> <did>. {Crash!|There was a loud crash.} The kitchen window was broken.")
    s.one('<H> {was scared|felt cold|did not know what to do}. "Now I am in trouble," <H.he> thought.',
          "<H> {hid the pieces under a rug|ran to <H.his> room|hid behind the door}.")
    s.one('{Soon|Then|After a while}, <P> came in. "Who broke the <n>?" <P.he> asked.', '<P> saw the broken <n>. "What happened here?" <P.he> asked.')
    if s.chance(0.6):
        s.one('"It was <C>," said <H>. [<H.he> looked at <H.his> feet.]', '"I do not know. {Maybe|Perhaps} it was <C>," said <H>.')
        s.one("<P> {said nothing|did not say a word} and {cleaned up|went out}. But <H> did not feel good. {<H.his> tummy hurt.|<H.he> could not eat.|<H.he> could not play.}", "But all day, <H> felt {bad|as if <H.he> had a stone in <H.his> tummy}.")
        s.par()
        s.say('At last, <H> went to <P>. "{I have to tell you something|I told a lie|It was not <C>}," <H.he> said. "I broke the <n>. I am {so sorry|very sorry}."')
    else:
        s.one("<H> wanted to say that it was <C>. But that was not true.", "<H> {looked down|was quiet for a moment}.")
        s.par()
        s.say('<H> took a deep breath. "It was me," <H.he> said. "I broke the <n>. I am {so sorry|very sorry}."')
    s.one('<P> {gave <H.him> a hug|took <H.his> hand|was not angry}. "{Thank you for telling the truth|I am glad that you told me|It was brave to tell me}," <P.he> said.',
          '<P> looked at <H.him> for a long time. Then <P.he> smiled. "{A <n> can be mended|We can get a new <n>}," <P.he> said. "{The truth is worth more|I am proud that you told the truth}."')
    s.one("Together they {picked up the pieces|cleaned up}.", "They {glued the pieces together|mended it together}. [It was not as pretty as before, but <H> liked it even more.]" if n not in ("window",) else "They put in a new window together.", "<H> {helped to clean up|promised to be more careful}.")
    s.close("<H> felt {light and happy again|much better}.", "That night, <H> slept well.", "And the stone in <H.his> tummy was gone." if "stone" in " ".join(s.parts) else "And <H> felt as light as a bird.",
            lesson="{it is always better to tell the truth|telling the truth makes you feel better|the truth is not so hard to say}")


TRAPS = [("stuck in the mud", "pulled and pulled", ["elephant", "bear", "pig", "donkey"]), ("caught in a net", "opened the knots of the net, one by one", ["lion", "bear", "deer"]),
         ("stuck in a hole", "made a little ramp of sticks and sand", ["bear", "goat", "fox", "badger"]), ("caught in a thorn bush", "pushed the thorns away one by one", ["bear", "dog", "lion", "deer"]),
         ("under a fallen branch", "lifted the branch with a long stick", ["fox", "dog", "badger", "deer"])]


def rescue(s):
    how, act, kinds = s.pick(TRAPS)
    f = s.animal(kinds, named=s.chance(0.5), adj=s.pick("big", "big", "strong", "proud"))
    h = s.child() if s.chance(0.3) else s.animal({k: ANIMALS[k] for k in ("mouse", "rabbit", "hedgehog", "squirrel", "mole", "frog", "bird")}, adj=s.pick("little", "small", "tiny"))
    s.v.update(F=f, how=how, act=act)
    s.open(h, None, "was {walking in the forest|on the way home|looking for berries}")
    s.par()
    s.say('<D> <H> heard {a loud cry|someone call for help|a cry for help}. "{Help|Help me|Please help me}!"')
    s.say("<H> {ran|hurried} to see. There was <F.intro>, <how>.")
    s.one('"{You are too small to help me|What can you do? You are so small|Oh, you are much too little}," said <F>.', '"I have been here all {day|night}," said <F>. "{Everyone else was afraid of me|No one would help me}."', "<F> was {very tired|sad and tired}.")
    s.one('"I may be small, but I {can try|have a good idea|will not leave you here}," said <H>.', '"Do not worry," said <H>. "I will {help you|get you out}."')
    s.par()
    s.say("<H> <act>. {It was hard work.|It took a long time.|<H.he> did not give up.}")
    s.one("At last, <F> was free!", "And then, all at once, <F> was free!")
    s.one('"{Thank you|You saved me}, <H.call>," said <F>. "{You are small, but your heart is big|I will never forget this|I was wrong about you}."')
    if s.chance(0.55):
        s.par()
        s.one("A few days later, <H> {fell into the river|was lost in the rain|was lost in the woods}. [<H.he> was cold and afraid.]", "Not long after, a {big storm|strong wind} came, and <H> could not get home.")
        s.one('Then {a big shadow came|someone came}. It was <F>! "{Climb on my back|Hold on to me}," said <F>, and {carried|brought} <H.him> home.')
        s.close('"{Now we are even|You helped me, and now I helped you|That is what friends are for}," said <F>.', "They {laughed|smiled}, because {both had kept their word|now they were true friends}.", friends="<F>", lesson="{a good deed comes back to you|no good deed is ever too small}")
    else:
        s.close("<H> went home with a {happy heart|big smile}.", "They {walked home together|sat in the sun together} and {talked|told stories} until it was dark.", "After that, <F> {carried <H> on <F.his> back|visited <H>} {every day|every Sunday}.", friends="<F>", lesson="{you do not have to be big to help|even the small can do great things}")


def race(s):
    fast, slow = s.pick([("rabbit", "turtle"), ("fox", "snail"), ("pony", "donkey"), ("deer", "hedgehog"), ("dog", "duck"), ("squirrel", "mole"), ("goat", "pig")])
    h = s.animal([slow], named=s.chance(0.7), adj=s.pick("slow", "little", "small", "quiet"))
    f = s.animal([fast], named=s.chance(0.7), adj=s.pick("proud", "fast", "quick"))
    s.v.update(F=f, far=s.pick("the old oak tree", "the bridge", "the big rock", "the mill", "the red gate"))
    s.open(h, "<H> was not fast, but <H.he> never gave up.", "was walking down the road")
    s.par()
    s.say('<D> <F.intro> {laughed at <H.him>|came running by}. "{You are so slow|I am the fastest of all|I have never seen anyone so slow}!" said <F>.')
    s.one('"{Let us have a race|We can have a race}," said <H>. "{To <far>|The first one at <far> wins}."', '"Slow or not, I {can race you|am not afraid of a race}," said <H>. "Let us run to <far>."')
    s.one('All the {animals|others} came to watch. "One, two, three, go!" {cried|called} the {owl|rooster|old crow}.', "The next morning, the race began. {Everyone came to watch.|One, two, three, go!}")
    s.one("<F> ran {like the wind|so fast that the dust flew}. Soon <F.he> was far ahead.", "<F> was {out of sight|far ahead} in no time.")
    s.par()
    s.one('"{I have so much time|This is too easy}," thought <F>. <F.he> {lay down under a tree and fell asleep|stopped to eat and then fell asleep|sat down to rest and closed <F.his> eyes}.', "<F> stopped to {eat some berries|talk to friends|look at <F.himself> in the pond}, and forgot the time.")
    s.one("But <H> went on, {step by step|slowly but surely}. <H.he> did not stop {once|to rest}.", "<H> {walked and walked|kept going}. <H.he> was tired, but <H.he> did not stop.")
    if s.chance(0.72):
        s.one("When <F> {looked up|woke up|remembered the race}, it was too late. <H> was {already at|standing at} <far>!", "<F> ran as fast as <F.he> could, but <H> {got to|was at} <far> first.")
        s.one('Everyone {cheered|clapped}. "{<H> wins|We have a winner|Well done}!"' if h.name else 'Everyone {cheered|clapped}. "{We have a winner|Well done}!"', '<H> smiled. "{Slow and steady|I just kept going}," <H.he> said.')
        s.close('<F> {was ashamed|looked at the ground}. "{I am sorry that I laughed at you|You won because you did not stop}," <F.he> said. "{That is all right|Let us be friends}," said <H>.',
                "<F> never laughed at {slow animals|anyone} again.", friends="<F>", lesson="{if you keep going, you will get there|it is better to be steady than proud}")
    else:
        s.one("On the way, <H> saw that <F> had {hurt <F.his> foot|a thorn in <F.his> foot}. <H> {could have gone on|wanted to win}, but <H.he> stopped to help.")
        s.one("They {walked on|went on} together, and they reached <far> at the same time.")
        s.close('"You could have won," said <F>. "A friend is better than a prize," said <H>.', "No one {asked|cared} who was faster. {Both had won a friend.|They had both won.}", friends="<F>", lesson="a friend is better than a prize")


SEEDS = [("a seed", "a sunflower", "as tall as the roof", "yellow"), ("a tiny seed", "a rose", "as red as the evening sky", "red"), ("a bean", "a bean plant", "all the way up to the window", "green"),
         ("an apple seed", "an apple tree", "with white flowers in spring", "white"), ("a pumpkin seed", "a pumpkin", "as big as a chair", "orange"), ("a strange seed", "a blue flower", "sweet like honey", "blue")]


def seed(s):
    h = s.hero(0.65, {k: ANIMALS[k] for k in ("rabbit", "mouse", "bear", "hedgehog", "squirrel", "mole", "frog", "pig")})
    np, plant, look, col = s.pick(SEEDS)
    s.v.update(np=np, plant=plant, look=look, seed=re.sub(r"^an? (tiny |strange )?", "", np))
    s.v["P"] = p = s.parent(h) if h.cls == "child" else s.animal(WOODLAND, named=True, adj="old")
    s.open(h, None, "found <np>")
    s.par()
    if np not in " ".join(s.parts):
        s.one("<D> <P> gave <H.him> <np>." if p.cls == "adult" else "<D> <H.his> friend <P>, <P.a>, gave <H.him> <np>.", "<D> <H> found <np> {in the grass|on the path|in <H.his> pocket}." if h.cls == "child" else "<D> <H> found <np> {in the grass|on the path}.")
    if p.cls == "adult" or p.name in " ".join(s.parts):
        s.one('"{Put it in the ground|Plant it}, give it water, and wait," said <P>.', '"{What is it|What will it be}?" asked <H>. "{Plant it and see|Wait and see}," said <P>.')
    else:
        s.say('<H> showed it to <P>, <P.a>. "{Plant it, give it water, and wait|Plant it and see}," said <P>.')
    s.one("<H> {dug a small hole in the garden|made a hole in the soft earth} and put the <seed> inside. Then <H.he> gave it some water.", "So <H> planted the <seed> {by the fence|behind the house|in a sunny place} and watered it.")
    s.par()
    s.one("The next day, <H> {ran to look|went to look}. Nothing! The day after that, still nothing.", "<H> waited one day, two days, three days. {Nothing came up.|But there was only brown earth.}")
    s.one('"{It will never grow|It does not like me|I do not want to wait anymore}," said <H>.', '<H> {was sad|wanted to dig it up}. "{Why does it take so long|When will it grow}?" <H.he> asked.')
    s.one('"{Good things take time|You must be patient|Wait a little longer}," said <P>. "{Keep giving it water|The <seed> is working under the ground}."')
    s.one("So <H> {watered it|gave it water} every {day|morning} and {sang to it|told it stories|waited}.", "So <H> did not give up. <H.he> watered it in the morning and in the evening.")
    s.one("Then, one {fine|sunny|warm} morning, there was a {tiny green leaf|small green tip}!", "And then, after the rain, something green {came out of the earth|looked out of the earth}.")
    s.one("It grew and grew. It became <plant>, <look>.", "{Week after week|Day after day}, it grew, until it was <plant>, <look>.")
    s.close('<H> {danced around it|was so proud}. "{I am glad that I waited|It was worth the wait}," <H.he> said.',
            '<H> showed it to <P>. "You see?" said <P>. "{You gave it water, and time did the rest|You were patient, and look what you have}."',
            "Everyone came to see it. [And when it had new seeds, <H> gave one to each of <H.his> friends.]",
            lesson="{good things take time|it is worth it to be patient}")


def rainy(s):
    h = s.hero(0.75, {k: ANIMALS[k] for k in ("rabbit", "mouse", "fox", "bear", "hedgehog", "kitten", "puppy")})
    s.v["F"] = s.child() if h.cls == "child" else s.animal(WOODLAND, named=True)
    s.v["B"] = rel = s.pick("friend", "friend", "brother", "sister", "cousin")
    if rel == "brother":
        s.v["F"] = Who("boy", "m", s.name(BOYS), "little", s.v["F"].cls)
    if rel == "sister":
        s.v["F"] = Who("girl", "f", s.name(GIRLS), "little", s.v["F"].cls)
    k = s.pick("tent", "boat", "train", "puddle", "puppet")
    if s.chance(0.4):
        s.v["H"] = h
        s.v["D"] = ""
        s.one("It was raining. Drip, drop, drip, drop.", "It was a rainy day. {The sky was gray.|The rain fell and fell.}", "The rain fell {all morning|on the roof}. Drip, drop.", "It rained and rained.")
        if h.name:
            s.say("<H>, <H.a>, {sat at the window|looked out of the window} with <H.his> <B> <F>.")
        else:
            s.say("<H> {sat at the window|looked out} with <H.his> <B> <F>.")
    else:
        s.open(h, None, "was at home with <H.his> <B> <F>")
        if not s.v["D"].startswith("{One"):
            s.v["D"] = ""
        s.par()
        s.say("<D> it {was raining|rained and rained}. <H> {sat at the window with|was at home with} <H.his> <B> <F>." if s.v["D"] else "It was raining, and they {could not go out|had to stay inside}.")
    s.one('"{I want to play outside|There is nothing to do|I am bored}," said <H>.', "They {had wanted to|wanted to} go to the {park|lake}, but now they had to stay inside.")
    s.one("<F> was {sad|bored} too. Then <F.he> had an idea.", 'Then <F> {smiled|jumped up}. "I have an idea!" <F.he> said.', "<H> thought for a while. Then <H.he> had an idea.")
    s.par()
    if k == "tent":
        s.one("They {took a big blanket and put it|got all the blankets and put them} over the table. Now they had a tent!")
        s.one("Inside, they {told stories|ate cookies and told stories} by the light of a little lamp.", '"{We are in the jungle|We are in the mountains}," said <H>. "{I hear a lion|I hear a wolf}!" said <F>. They {laughed|hid under a pillow}.')
    elif k == "boat":
        s.one("They turned the {sofa|big box|old tub} into a boat. The {floor|rug} was the sea.")
        s.one("<H> was the captain, and <F> looked for land with a paper tube.", 'They {fished for socks|sailed past whales and islands}. "Land!" cried <F>, and they {landed on the bed|landed in the kitchen}, where there was cake.')
    elif k == "train":
        s.one("They put all the chairs in a long line. It was a train!")
        s.one('"{Tickets, please|All aboard}!" said <H>. <F> {made the sound of the wheels|blew the whistle}.', "They {drove|went} to the mountains, to the sea, and to the moon.")
    elif k == "puddle":
        s.one("They put on {their boots and coats|boots and hats} and went out {into the rain|into the garden}.")
        s.one("Splash! They jumped {in|into} every puddle. {Their noses were wet, but they did not care.|The mud flew up to their ears.}", "They {made a little river|let leaf boats sail in the puddles} and {jumped and splashed|laughed}.")
    else:
        s.one("They made puppets from old socks. One was a {king|wolf|dragon}, and one was a {cat|mouse|queen}.")
        s.one("Then they {played a show|made a show} for {the whole family|the teddy bears}. {Everyone clapped.|What a show it was!}")
    s.one("They played {for hours|all afternoon}. {No one thought of the rain.|They forgot all about the rain.}", "The time went by so fast.")
    s.close('When they looked up, the sun was out{.| and there was a rainbow.} "Oh!" said <H>. "{I did not even see that the rain stopped|I wish it would rain again}!"',
            '"{I like rainy days|Rainy days are the best}," said <H>. "{Me too|So do I}," said <F>.',
            "In the evening, they {drank hot milk|had hot soup} and listened to the rain. Drip, drop, good night.",
            lesson="{a rainy day can be fun too|a good friend is better than good weather}")


def treasure(s):
    h = s.hero(0.7, {k: ANIMALS[k] for k in ("mouse", "fox", "rabbit", "monkey", "dog", "squirrel", "mole")})
    s.v["F"] = f = s.child() if h.cls == "child" else s.animal(WOODLAND, named=True)
    find = s.pick("an old map", "an old map", "a rusty key", "a bottle with a letter inside")
    s.v.update(find=find, obj="map" if "map" in find else "key" if "key" in find else "letter",
               where=s.pick("in the attic", "under the stairs", "on the beach", "in a hollow tree", "in an old book" if "map" in find else "in the sand"))
    s.open(h, "<H> {loved adventures|always wanted to find a treasure}.", "was playing with <H.his> friend <F>")
    if f.name not in " ".join(s.parts):
        s.say("<H.his> best friend was {<F>|<F.intro>}.")
    s.par()
    s.one("<D> they found <find> <where>.", "<D> <H> found <find> <where>. <H.he> {showed it to|ran to} <F>." if s.v["D"] else "They found <find> <where>.")
    if s.v["obj"] == "key":
        s.one('"What does it open?" asked <F>. "Let us find out!" said <H>.')
        s.one("They tried {the door of the shed|the garden gate|every door in the house}. It did not fit. They tried {the clock|the old cupboard}. It did not fit.")
        s.one("Then, {behind the shed|under the roof|in a dark corner}, they saw {a small chest|a little door|an old box}.")
        s.say("The key turned with a click!")
    else:
        s.one('"{There is a big red X on it|It shows the way to a treasure|Look, it says that there is a treasure}!" said <H>.', '"A treasure!" {cried|whispered} <F>. "{Let us go and find it|Shall we look for it}?"')
        s.one("They walked {ten steps to the left|to the old oak tree} and {over the little bridge|past the well}.", "They followed the <obj> {through the woods|along the river} and {up the hill|over the fields}.")
        s.one('They came to {a big stone|an old tree|a cave}. "{Here it must be|This is the place}," said <F>, and they began to dig.')
        s.say("{Clunk!|Bump!} There was {a small chest|an old box} in the ground.")
    s.par()
    s.one("Slowly, they {opened it|looked inside}.", '"{You open it|Together}," said <H>. {They held their breath.|One, two, three!}')
    k = s.pick("toys", "letter", "book", "seeds", "coins")
    s.say({"toys": "Inside were {marbles, a top and a tin soldier|old toys}: {they had belonged to <H.his> grandfather|someone had put them there long ago}." if h.cls == "child" else "Inside were {marbles of every color|old toys}. Someone had put them there long ago.",
           "letter": 'There was only a piece of paper. It said: "The real treasure is the friend who is with you."',
           "book": "Inside was a book full of {stories|pictures of far lands}.",
           "seeds": "It was full of {flower seeds|seeds}. There was no gold at all.",
           "coins": "It was full of {golden coins|chocolate coins}!"}[k])
    s.say({"toys": "<H> and <F> {played with them all day|shared them fairly}.", "letter": "<H> looked at <F>, and <F> looked at <H>. Then they {both laughed|smiled}.",
           "book": "They sat down {under a tree|in the sun} and read {until the sun went down|one story after the other}.",
           "seeds": "They planted the seeds. In the summer, {the whole garden was full of colors|there were flowers everywhere}.",
           "coins": "They {bought ice cream for all their friends|shared them with everyone}." if s.chance(.5) else "They gave some to everyone they met."}[k])
    s.close('"{That was a real adventure|This is the best treasure}," said <F>. "{And tomorrow we will find another one|Yes, it is}," said <H>.',
            "<H> {never forgot that day|kept the <obj> for ever}.", "They went home, {tired and happy|hand in hand}." if h.cls == "child" else "They went home, tired and happy.",
            friends="<F>", lesson="{the best treasure is a good friend|not all treasure is gold}")


def sleepless(s):
    h = s.hero(0.55, {k: ANIMALS[k] for k in ("rabbit", "bear", "mouse", "owl", "fox", "kitten", "lamb", "elephant", "squirrel")})
    s.v["P"] = s.parent(h)
    k = s.pick("star", "moon", "noise")
    s.open(h, None, "had played all day long")
    s.v["D"] = "{One night,|One night,|One night,|One evening,}" if s.v["D"].startswith("{One") else "{That night,|In the evening,}"
    s.par()
    if k == "noise":
        s.say("<D> <H> heard {a strange noise|something}. {Tap, tap, tap.|Scratch, scratch.|Thump, thump.} It came from {the window|the roof|under the floor|behind the door}.")
        s.one('"{Who is there|What is that}?" {whispered|asked} <H>. No one answered.', "<H> pulled the blanket over <H.his> head. {Tap, tap, tap.|There it was again!}")
        s.one('<H> went to wake <P>. "{There is a monster|I hear something}," <H.he> said.', '"<P.call>!" called <H>. <P> came {with a lamp|at once}.')
        s.par()
        s.say("{They took the lamp and looked.|Together they went to look.} It was {only a branch that moved in the wind|a small wet kitten that wanted to come in|a hedgehog looking for food|an old shutter in the wind}!")
        if "kitten" in s.parts[-1] or "hedgehog" in s.parts[-1]:
            s.one("They gave it {some milk|some food} and {a warm place by the stove|a box with a blanket}. [It was no monster at all.]")
            s.close('<H> {laughed|smiled}. "{Good night, little monster|Sleep well, little one}," <H.he> said.', "Soon everyone was asleep, {even the little guest|and the house was quiet}.", lesson="most monsters are very small when you look at them")
        else:
            s.one('"{So that was the monster|That is all}!" said <H>, and {<H.he> had to laugh|they both laughed}.')
            s.close("<P> {tucked <H.him> in|gave <H.him> a kiss}, and soon <H> was fast asleep.", "<H> went back to bed. Tap, tap, tap, {went the night|went the night}, and now it was like a song.", lesson="most monsters are very small when you look at them")
        return
    s.say("<D> <H> could not sleep. <H.he> turned to the left, and <H.he> turned to the right.")
    s.one("<H.he> counted {sheep|to one hundred}, but it did not help.", "The {bed was too warm|pillow was too hard}, and {the clock was too loud|the blanket was too short}.", "")
    if k == "star":
        s.one("Then <H> saw {a small star|a little star} at the window. It {blinked|seemed to wink} at <H.him>.")
        s.one('"{Can you not sleep either|Why are you awake}?" asked the star. "I can not sleep," said <H>. "{It is too quiet|I am not tired}."', '"Hello, star," said <H>. "Are you not tired?" "{I sleep in the day|I sleep when the sun is up}," said the star.')
        s.par()
        s.one('"I will tell you what I see from up here," said the star. "I see {ships on the sea|the roofs of the town}, and {a fox on the way home|owls in the wood}, and {all the children asleep|a bear snoring in a cave}."',
              '"Then I will sing for you," said the star. The song was {soft and silver|as soft as snow}.')
        s.one("<H> listened. <H.his> eyes {became heavy|closed slowly}.", "<H> {yawned once, and twice|gave a big yawn}.")
        s.close('When the star was done, <H> was {already asleep|fast asleep}. "Good night," said the star.', "And so <H> fell asleep, and the star {watched over <H.him>|stayed at the window} until morning.", "The next night, <H> looked for the star. It was there{,| and it blinked,} and <H> {fell asleep at once|was not alone}.")
    else:
        s.one('<H> went to <P>. "I can not sleep," <H.he> said.', '<P> came in. "{Still awake|Are you still awake}?" <P.he> asked.')
        s.one("<P> {took <H.him> to the window|opened the curtain}. The moon was {big and round|white and bright}.")
        s.par()
        s.one('"{The moon says good night to everyone|Look, the moon is saying good night}," said <P>. "To the {hills|trees}, to the {birds|fish in the pond}, and to you."', '"Let us say good night to everything," said <P>. "Good night, {trees|hills}. Good night, {river|road}. Good night, {owl|cat}."')
        s.one('"Good night, moon," said <H>, and {<H.he> yawned|<H.his> eyes became small}.')
        s.close("<P> carried <H.him> back to bed. <H> was asleep before <H.his> head touched the pillow.", "<P> {sang a quiet song|sat by the bed}, and soon <H> was asleep.", "And then <H> {slept until morning|dreamed of a boat that sailed to the moon}.")


def quarrel(s):
    h = s.hero(0.6, {**WOODLAND})
    f = s.child() if h.cls == "child" else s.animal(WOODLAND, named=True)
    while h.name is None:
        h = s.animal(WOODLAND, named=True)
    s.v["F"] = f
    s.v["H"] = h
    about = s.pick([("the red swing", "I was here first"), ("the last cookie", "I saw it first"), ("the blue crayon", "I need it now"), ("the biggest shell", "I found it"), ("the new ball", "It is my turn"), ("the best place in the sun", "I was here first")])
    s.v.update(thing=about[0], claim=about[1])
    if s.chance(0.6):
        s.one("<H> and <F> were {best friends|good friends}. They did everything together.", "Once upon a time, there were two friends, <H> and <F>.", "Once upon a time, <H.intro> and <F.intro> were {best friends|neighbors}." , "There once were two friends named <H> and <F>. [They lived next door to each other.]")
        s.v["D"] = "{One day,|One morning,|One afternoon,}"
        if h.cls == "animal" and h.noun not in s.parts[-1]:
            s.say("<H> was <H.a>, and <F> was <F.a>.")
    else:
        s.open(h, "<H.his> best friend was <F.intro>. They {played together every day|did everything together}.", "was playing with <H.his> friend <F>")
        if f.name not in " ".join(s.parts):
            s.say("<H.his> best friend was <F>.")
    s.par()
    s.say('<D> both of them wanted <thing>. "<claim>!" {said|shouted} <H>. "No, {it is mine|you always get it}!" {said|shouted} <F>.')
    s.one("They pulled and pushed. They {shouted|said bad words} until {their faces were red|they had no voice left}.", "{Soon|Then} they were both very angry.")
    s.one('"{I do not like you anymore|You are not my friend anymore}!" said <F>, and {ran home|went away}.', "<F> went {one way, and <H> went the other way|home, and <H> went home, too}.")
    s.par()
    s.one("<H> {played alone|sat alone}. It was {no fun|very quiet}. {<H.he> missed <F>.|Who would laugh with <H.him> now?}", "Now <H> had {no one to play with|a quiet, empty afternoon}. <H.he> was not angry anymore. <H.he> was only sad.")
    s.one("At home, <F> was sad, too.", "<F> did not {sleep well|eat <F.his> dinner} that night.", "")
    s.one('{The next day|In the evening|After a while}, <H> {went to <F>\'s house|knocked at <F>\'s door}. "{I am sorry|I am sorry that I shouted}," <H.he> said. "{I am sorry, too|No, I am sorry}," said <F>.',
          '{The next day|The next morning}, they {met on the road|met at the gate}. "I am sorry!" they both said at the same time. Then they {laughed|had to laugh}.')
    s.one('"You can have <thing>," said <H>. "No, you {have it|take it}," said <F>. {They laughed again.|And then they both laughed.}', '"We can {share|take turns}," said <H>. And {that is what they did|so they did}.')
    s.close("They {hugged|shook hands}, and everything was {good|all right} again.", "They played until {the sun went down|it was dark}, and neither of them was {angry|sad} anymore.", "And after that, they {took turns|shared everything}.",
            lesson="{a friend is more important than <thing>|saying sorry can mend a friendship}")


WISHES = [("bird", "swim like a fish", "jumped into the pond", "got all wet and could not fly home", "sing from the top of the trees"),
          ("duck", "climb trees like a squirrel", "tried to climb the oak tree", "fell on the grass with a bump", "swim and fly"),
          ("rabbit", "fly like a bird", "jumped from a rock and waved both ears", "landed in a bush", "hop faster than anyone"),
          ("turtle", "run like a deer", "ran down the hill", "rolled over and lay on the hard shell, feet in the air", "carry a house everywhere"),
          ("elephant", "be small like a mouse", "tried to creep into a mouse hole", "got stuck with the trunk", "reach the highest fruit"),
          ("mouse", "be big like an elephant", "ate and ate to grow big", "got a tummy ache", "slip through the smallest hole"),
          ("frog", "roar like a lion", "stood on a stone and roared", "only said ribbit, and everyone laughed", "jump over the whole pond"),
          ("pig", "be clean and white like a swan", "washed all day long", "was cold and missed the mud", "find the best roots of all"),
          ("penguin", "fly like a gull", "jumped from the ice and waved both wings", "fell into the sea with a splash", "swim faster than the fish"),
          ("owl", "stay awake in the day like the others", "stayed up all morning", "fell asleep in the middle of a game", "see in the dark")]


def wish(s):
    kind, want, tried, fail, gift = s.pick(WISHES)
    h = s.animal([kind])
    s.v.update(want=want, tried=tried, fail=fail, gift=gift)
    s.v["F"] = s.animal([k for k in WOODLAND if k != kind], named=True, adj=s.pick("old", "wise", "wise old"))
    s.open(h, "But <H> was not happy. <H.he> wanted to <want>.", "wanted to <want>")
    if want not in " ".join(s.parts):
        s.say("<H> wanted to <want>.")
    s.par()
    s.say("<D> <H> <tried>. But <H.he> <fail>.")
    s.one('"Why can I not do it?" {said|cried} <H>.', "<H> {sat down and cried|was very sad|felt silly}.")
    s.say('<F.intro> {had seen it all|came by}. "{What is the matter|Why are you sad}?" asked <F>. ["I want to <want>," said <H>.]')
    s.par()
    s.one('"{But you can|Look at yourself, you can} <gift>," said <F>. "{No one else here can do that|I wish that I could do that}!"', '"Do you know who can <gift>?" asked <F>. "You can! {And I can not|That is something special}."')
    s.one("<H> {had never thought of that|thought about it}. {It was true.|<F> was right.}")
    if s.chance(0.4):
        s.one("Just then, {someone called for help|they heard a cry}. Only someone who could <gift> could help, and so <H> {did it|saved the day}. [Everyone cheered.]")
    s.close("From that day on, <H> was {happy|glad} to be {<H.himself>|a <H.noun>}.", '"{I am happy to be me|It is good to be a <H.noun>}," said <H>, and <H.he> smiled.', "And <H> never wanted to be anyone else again.",
            lesson="{everyone is good at something|it is good to be yourself}")


def sick(s):
    h = s.hero(0.5, WOODLAND)
    s.v["F"] = f = s.child() if h.cls == "child" else s.animal(WOODLAND, named=True)
    s.v["soup"] = s.pick("hot soup", "warm soup with carrots", "tea with honey", "soft porridge")
    s.v["thing"] = s.pick("a picture", "a bunch of wild flowers", "a funny book", "a card with a big heart")
    s.open(h, "<H.his> best friend was <F.intro>." , "went to visit <H.his> friend <F>")
    if f.name not in " ".join(s.parts):
        s.say("<H.his> best friend was <F>.")
    s.par()
    if "visit" in s.parts[-2]:
        s.say("<H> knocked at <F>'s door. {No one came.|There was no answer.}")
    else:
        s.one("<D> <F> did not come out to play. {Where could <F.he> be?|<H> waited and waited.}", "<D> <H> knocked at <F>'s door. No one came.")
    s.one("<H> looked in at the window. <F> was in bed, with a {red nose|warm scarf around <F.his> neck}.", "<H> {went inside|opened the door}. There was <F>, in bed.")
    s.one('"I {am sick|have a cold}," said <F>. "{I can not play today|My head hurts|Achoo}!"', '"Achoo!" said <F>. "{I feel so bad|I have a cold}."')
    s.par()
    s.one('"{I will take care of you|Stay in bed|Do not worry}," said <H>. "{I will be right back|I know what will help}."')
    s.one("<H> made <soup>. [It {smelled wonderful|was a little too salty, but <F> did not mind}.]", "<H> ran home and came back with <soup>.")
    s.one("Then <H> {read a story to <F>|told <F> a funny story|sang a quiet song}.", "<H> had <thing> for <F>, too. [<F> put it next to the bed.]" if "book" not in s.v["thing"] else "<H> read to <F> from a funny book.", "<H> put a {soft pillow} under <F>'s head.")
    s.one('<F> {smiled|laughed for the first time that day}. "{I feel better already|You are a good friend}," <F.he> said.', "<F> {fell asleep|slept}, and <H> {sat by the bed|stayed until it was dark}.")
    s.one("{The next day|Three days later|Soon}, <F> {was well again|could get up again}. They {ran outside|went out to play} {in the sun|together}.")
    if s.chance(0.4):
        s.say('But then <H> said, "Achoo!" Now <H> had the cold! "{Now it is my turn to make soup|Now I will take care of you}," said <F>.')
        s.close("And <F> did. That is how good friends are.", "They both {had to laugh|laughed}.", friends=None)
    else:
        s.close('"Thank you for taking care of me," said <F>. "{That is what friends are for|You would do the same for me}," said <H>.', "They played twice as long as before, because {they had missed so much|it was so nice to be well}.", lesson="{friends take care of each other|a kind friend is the best medicine}")


def fog(s):
    h = s.hero(0.5, {k: ANIMALS[k] for k in ("rabbit", "bear", "fox", "lamb", "goat", "duck", "mouse", "deer", "puppy")})
    s.v["P"] = s.parent(h)
    what = s.pick([("the fog", "{a thick white fog|a gray fog} came down"), ("the snow", "it began to snow, more and more"), ("the storm", "dark clouds came, and the wind began to blow"), ("the dark", "the sun went down")])
    s.v.update(w=what[0])
    s.v["F"] = s.pick([Who("firefly", "f", adj="tiny", cls="small"), Who("owl", "m", adj="old", cls="small"), Who("star", "n", adj="bright", cls="small"), Who("crow", "m", adj="black", cls="small")])
    f = s.v["F"]
    f.ref = f"the {f.noun}"
    s.open(h, None, "went {far from home to pick flowers|out to pick berries|for a long walk}")
    s.par()
    s.say("<D> <H> {went far from home|walked too far}." if not any(x in s.parts[-2] for x in ("pick", "long walk")) else "", "{Suddenly|Then}, " + what[1] + ". <H> could not see {the path|the way home} anymore.")
    s.one('"{Where is the way home|Hello|Is anyone there}?" called <H>. {No one answered.|There was no answer.}', "<H> walked to the left. <H> walked to the right. Everything looked the same.")
    s.one("<H.he> was {cold|tired} and a little afraid. {<H.he> thought of <P>.|A tear ran down <H.his> nose.}", "<H> {sat down under a tree|stopped and listened}. <H.his> heart beat fast.")
    s.par()
    if f.noun == "star":
        s.one('Then <H> looked up. There was a bright star, {just above the hill|right above <H.his> house}. "{That is where home is|I know that star}," said <H>.')
        s.one("<H> {walked toward the star|followed the star}, step by step.")
    else:
        s.one('Then <H> saw <F.a>. "Are you lost?" asked <F>. "{Yes|I want to go home}," said <H>.')
        s.one('"{Follow me|Come with me|Stay close to me}," said <F>. "{I know the way|I can see the way from above}."', "<F> flew ahead, {slowly|not too fast}, and <H> went after <F.him>.")
    s.one("Over the {bridge|stones} and {past the old mill|through the wood} they went.", "It was a long way, but <H> did not give up.") if f.noun != "star" else s.one("It was a long way, but <H> did not give up.", "<H.he> did not look to the left, and <H.he> did not look to the right.")
    s.one("And there, at last, was a light. It was <H.his> own house! <P> stood at the door.", 'Then <H> heard a voice. "<H.call>! {Where are you? Come home!|Come home!}" It was <P>.' if h.name else "Then <H> heard a voice that called and called. It was <P>.")
    s.one('<P> {held <H.him> tight|took <H.him> in <P.his> arms}. "I was so worried," <P.he> said.')
    s.close("<H> {got hot milk and a blanket|sat by the fire with a cup of hot milk}. It is good to be home.", ('"Thank you, <F.noun>!" called <H> into the night.' if f.noun != "star" else "That night, <H> waved at the star from the window."), "After that, <H> never went so far {alone|from home alone} again.",
            lesson="{it is wise not to go too far alone|there is always a light if you look for it}")


def dragon(s):
    k = s.pick("fire", "king", "knight")
    if k == "fire":
        h = s.animal(["dragon"], adj=s.pick("little", "young", "green", "small"))
        s.v["F"] = s.child() if s.chance(0.5) else s.animal(WOODLAND, named=True)
        s.open(h, "<H> could not {breathe fire|make fire like the other dragons}. When <H.he> tried, only {soap bubbles|a little smoke|flowers} came out.", "was sitting on a rock, very sad")
        if "only" not in " ".join(s.parts):
            s.say("<H> could not breathe fire. When <H.he> tried, only {soap bubbles|a little smoke|flowers} came out.")
        s.v["out"] = "bubbles" if "bubbles" in s.parts[-1] else "smoke" if "smoke" in s.parts[-1] else "flowers"
        s.par()
        s.one("The other dragons laughed at <H.him>. {So <H.he> flew away to be alone.|<H> felt very small.}", '"{What a silly dragon|That is not fire}," said the other dragons.')
        s.say('<D> <F.intro> {came to the mountain|climbed up to the cave}. "{Please do not be afraid of me|Are you crying}," '.split('"')[0] + '"Why are you so sad?" asked <F>.')
        s.say('"{I can not breathe fire|I only make <out>}," said <H>. <H.he> blew, and {out came|there were} {more|} <out>.')
        s.par()
        s.one('<F> {laughed with joy|clapped}. "{But that is wonderful|I have never seen anything so nice}!" <F.he> said. "{Everyone has seen fire|Fire burns things}. {No one else can make <out>|But everyone loves <out>}!"' if s.v["out"] != "smoke" else '"Smoke is good," said <F>. "You can write in the sky with it!" <H> tried, and {there was a big heart in the sky|it worked}.')
        s.one("{The next day|That same day}, <F> took <H> to the village. {The children shouted with joy.|All the children came running.}", "Soon children came from {far away|every village} to see it.")
        s.close("And <H> {was the happiest dragon in the world|was never sad again}.", 'The other dragons came, too. "Show us how you do it!" they said.', friends="<F>", lesson="{it is good to be different|everyone is good at something}")
    elif k == "king":
        r = s.pick(("king", "m"), ("queen", "f"), ("prince", "m"), ("princess", "f"))
        h = Who(r[0], r[1], s.name(GIRLS if r[1] == "f" else BOYS) if s.chance(0.3) else None, s.pick("sad", "rich", "young", "great"), "royal")
        if not h.name:
            h.ref = f"the {r[0]}"
        s.v["F"] = s.child()
        s.v["live"] = "in a big castle"
        h.home = "a big castle"
        s.v["H"] = h
        s.one("Once upon a time, there was <H.intro> who {never laughed|had everything but could not laugh}.", "Once upon a time, in a land far away, there lived <H.intro> who never laughed.", "Once upon a time, <H.intro> lived in a big castle. But <H.he> never laughed.", "There was once <H.intro> who never laughed.", "Long ago, there was <H.intro> in a golden castle. <H.he> had everything, but <H.he> never laughed.")
        s.par()
        s.one("There was a bag of gold for the one who could make <H> laugh. Clowns came and {danced|fell over their own feet}. Singers came and sang {funny songs|all day}. But <H> only looked out of the window.", '"Who can make me laugh?" said <H>. "I will give {a bag of gold|a bag of gold and a horse} to the one who can!" Many came, but no one could.')
        s.say("One day, <F.intro> came to the castle with {a basket of eggs|a goose under <F.his> arm|a small pig on a string|a bag of apples}.")
        b = s.parts[-1]
        th = "eggs" if "eggs" in b else "goose" if "goose" in b else "pig" if "pig" in b else "apples"
        s.par()
        s.say({"eggs": "<F> slipped on the stairs. The eggs flew up, and one landed right on the head of {the cook|a guard}.", "goose": "The goose got away. It ran {over the table and through the soup|around the room}, and {ten guards|all the guards} ran after it.",
               "pig": "The pig got away. It ran {between the legs of the guards|under the long table}, and {they all fell down|plates flew everywhere}.", "apples": "The bag broke, and the apples rolled everywhere. {The guards slipped and sat down, one by one.|The cook slipped, and the cake landed on his head.}"}[th])
        s.one("It was very quiet. {Everyone looked at <H>.|<F> was afraid.} Then <H> began to laugh. <H.he> laughed and laughed{.| until the tears came.}")
        s.one('"{That was the funniest thing I have ever seen|I have not laughed for ten years}!" said <H>. "Here is your gold!"', '"Stay and eat with me," said <H>.')
        s.close("From then on, <F> came to the castle {every Sunday|every week}, and {there was always something to laugh about|they laughed together}.", "And <H> {was never sad again|learned to laugh every day}. <F> went home with a {full bag and a happy heart|happy heart}.", friends="<F>")
    else:
        h = s.child()
        s.v["F"] = s.animal(["dragon"], adj=s.pick("green", "red", "big", "huge", "old"))
        s.open(h, "<H> wanted to be a {knight|hero}.", "took {a wooden sword|a stick and a pot for a hat} and went to look for a dragon")
        s.par()
        s.say("People said that there was a dragon {on the mountain|in the dark wood}. Everyone was afraid of it." if s.chance(0.6) else "", ("<D> <H> {took a wooden sword and|took a lamp and} went to find the dragon." if "look for a dragon" not in " ".join(s.parts) else "<H> walked {all day|for a long time}."))
        s.one("In a deep cave, <H> found <F.intro>. {It had big teeth and long wings.|Its eyes were as big as plates.}", "<H> {came to a cave|looked into a cave}. Inside was <F.intro>.")
        s.one('"{Are you going to eat me|Are you a bad dragon}?" asked <H>. "Eat you?" said <F>. "{I only eat soup|I like cake much better}!"', '<H> was {a little scared|shaking}. But the dragon was crying! "{I have a thorn in my foot|Everyone runs away from me}," said <F>.')
        s.par()
        if "thorn" in s.parts[-2] if s.parts[-1] == "\n" else False:
            s.one('<H> put down {the sword|<H.his> things} and pulled out the thorn. "{Thank you|That feels so much better}!" said <F>.')
        else:
            s.one("<H> sat down next to <F>. They talked {all afternoon|until it was dark}. The dragon was {kind and funny|not bad at all, only lonely}.")
        s.one("<F> took <H> on <F.his> back and they flew {over the hills|over the village|above the clouds}.", "Then <F> {made a fire|lit a fire with one breath}, and they {cooked soup|baked apples}.")
        s.one('{When they came to the village,|The next day, they went to the village, and} {everyone was afraid|people ran away} at first. "{This is my friend|Do not be afraid}," said <H>. "<F.He> {would not hurt a fly|is kind}."')
        s.close("Soon {the children played on the dragon's back|everyone liked the dragon}.", "And in winter, <F> kept the whole village warm.", friends="<F>", lesson="{you should not be afraid before you know someone|a friend can look very strange at first}")


def market(s):
    h = s.child() if s.chance(0.75) else s.animal({k: ANIMALS[k] for k in ("bear", "rabbit", "fox", "mouse", "hedgehog", "pig")})
    s.v["P"] = s.parent(h)
    buy = s.pick(["bread", "milk", "eggs", "apples", "flour", "cheese"])
    s.v["buy"] = buy
    s.open(h, None, "had to go to the market")
    s.par()
    s.one('<D> <P> {gave <H.him> a coin|gave <H.him> a basket and a coin}. "Please {go to the market and buy|buy} some <buy>," <P.he> said.', '<D> <P> said, "{We have no <buy>|There is no <buy> left}. Can you go to the market?"')
    s.one('"{Yes|Of course|I can do it}!" said <H>. <H.he> had never gone {alone before|all alone}.', "<H> {was proud|felt very big} and {went off at once|ran down the road}.")
    what = s.rng.sample([
        ("an old man who {had dropped his bag|could not carry his bag}", "<H> helped him {pick up everything|carry it home}", "the old man gave <H.him> {a nut|an apple}" if buy != "apples" else "the old man gave <H.him> a nut"),
        ("a hungry cat", "<H> gave it {a piece of bread|something to eat}" if buy != "bread" else "<H> gave it something from <H.his> pocket", "the cat walked with <H.him>"),
        ("a girl who was crying over a broken doll", "<H> tied the arm of the doll with a string", "the girl gave <H.him> a ribbon"),
        ("a bird with a thread around its foot", "<H> took off the thread", "the bird sang a song for <H.him>"),
        ("a woman whose hat was in a tree", "<H> climbed up and got it", "the woman thanked <H.him>"),
        ("a little dog that could not cross the stream", "<H> carried it over", "the dog {barked with joy|came along}")], 2)
    s.par()
    s.say("On the way, <H.he> met " + what[0][0] + ". " + what[0][1] + ", and " + what[0][2] + ".")
    s.say("{A little later|Then}, <H.he> met " + what[1][0] + ". " + what[1][1] + ", and " + what[1][2] + ".")
    s.par()
    if s.chance(0.5):
        s.say("When <H> came to the market, {the coin was gone|<H.he> put a hand in <H.his> pocket. The coin was gone}! There was a hole in the pocket." if h.cls == "child" else "When <H> came to the market, the coin was gone! It must have fallen out of the basket.")
        s.one('<H> {wanted to cry|did not know what to do}. But the woman at the stall smiled. "{I saw how you helped on the road|I heard that you helped my friends}," she said. "{Take the <buy>}."')
    else:
        s.say("At last, <H> {came to|was at} the market. There was so much to see: {flowers, fish and fruit|red apples, yellow cheese and brown bread}. <H> {bought|paid for} the <buy> and {went home|walked back}.")
    s.one('"{You were gone for so long|There you are at last}!" said <P>.', "<P> was waiting at the {door|gate}.")
    s.say("<H> told <P.him> everything.")
    s.close('"{I am proud of you|You have a good heart}," said <P>, and {they had dinner together|they ate a good supper}.', '<P> {laughed|smiled}. "{The <buy> can wait, but a kind deed can not|I could not have a better helper}," <P.he> said.',
            lesson="{a kind deed is never lost|there is always time to help}")


def messy(s):
    h = s.hero(0.7, {k: ANIMALS[k] for k in ("rabbit", "bear", "mouse", "fox", "pig", "monkey", "squirrel", "badger")})
    p = s.v["P"] = s.parent(h)
    s.v["room"] = "room" if h.cls == "child" else s.pick("room", "home")
    s.v["lost"] = s.pick("left shoe", "red hat", "new book", "blue mitten", "yellow cup")
    s.open(h, "<H> never {cleaned up|put anything away}. {There were things everywhere.|<H.his> <room> was a big mess.}", "looked at <H.his> messy <room>")
    if "mess" not in " ".join(s.parts) and "never" not in " ".join(s.parts):
        s.say("<H.his> <room> was {a big mess|always messy}.")
    s.par()
    s.one("<D> <H> wanted to go {to a party|out to play|to the fair}. But where was <H.his> <lost>?", "<D> <H> {looked for|needed} <H.his> <lost>. {It was nowhere.|But where was it?}")
    s.one("<H.he> looked under {the socks|the papers}. <H.he> looked behind {the boxes|the blocks}. No <lost>!", "<H.he> threw {the pillows|the toys} over <H.his> shoulder, and now the mess was even bigger.")
    s.one('"{It is time to clean up|I think I know what to do}," said <P>. "{No|Oh no}!" said <H>. "{That will take all day|It is too much}!"', '<P> {looked in|came in} and {shook <P.his> head|had to climb over the toys}. "Shall we clean up?" <P.he> asked.')
    s.par()
    s.one('"{Let us make a game of it|We can sing while we work}," said <P>. "First all the red things, then all the blue things."', "They began {with the books|in one corner}. {One thing and then the next thing.|They sang a song, and it went fast.}")
    s.one("Under {a pile of clothes|the bed}, they found {a long lost ball|an old sandwich|three pencils}. Behind the {door|chair}, they found {a puzzle|a spoon and a bell}.", "{Little by little|Soon}, they could see the floor again.")
    s.say("And there, {right in the middle|at the very bottom|behind the last box}, was the <lost>!")
    s.one('"{It was here all the time|There you are}!" {said|laughed} <H>.', "<H> {danced for joy|gave <P> a hug}.")
    s.close("Now there was so much {room|space} to {dance|play}! [<H> liked it.]", "After that, <H> {put <H.his> things away every evening|always knew where everything was}.", "The <room> was so nice that <H> {did not want to go out anymore|invited all <H.his> friends}.",
            lesson="{a little order saves a lot of time|big work is small when you do it together}")


THINGS = [
    ("boat", "n", ["old", "little", "blue"], "in a {small harbor|harbor by the sea}", "{bigger boats|new ships}", "sail", "it was {too old|too slow|too small}", "One night, there was a big storm. A fishing boat was lost on the sea.", "It was small enough to go between the rocks", "brought the men home"),
    ("train", "n", ["little", "red", "old"], "in a small station", "{fast trains|big engines}", "pull the wagons", "it was {too slow|too weak}", "One winter day, deep snow lay on the tracks. The fast trains could not go on.", "It was not fast, but it was strong", "brought the food to the village"),
    ("robot", "n", ["little", "tin", "small"], "in a toy shop", "{new toys|bright toys}", "play", "it was {old and slow|a little rusty}", "One evening, the lights in the shop went out, and a small child was alone in the dark.", "It had a little lamp on its head", "led the child to the door"),
    ("lighthouse", "n", ["old", "tall", "white"], "on a rock by the sea", "{modern lamps|big ships}", "shine", "it was {too old|only a lamp}", "One night, the fog was so thick that no ship could find the harbor.", "It made its light as bright as it could", "brought every ship safely home"),
    ("cloud", "n", ["little", "white", "small"], "high up in the sky", "{big clouds|gray clouds}", "make rain", "it was {too small|too light}", "One summer, no rain fell. In a little garden, the flowers began to dry up.", "It held its breath and made itself as heavy as it could", "gave the garden a soft rain"),
    ("star", "n", ["tiny", "little", "small"], "far up in the night sky", "{big stars|bright stars}", "shine", "it was {too small|too far away}", "One night, a sailor was lost on the sea. Clouds had hidden all the other stars.", "It shone with all its might", "showed the sailor the way home"),
    ("bus", "n", ["yellow", "old", "little"], "in a busy town", "{new cars|fast cars}", "drive", "it was {too old|too slow}", "One morning, it snowed so much that no car would start. How would the children get to school?", "Its big wheels rolled through the snow", "took all the children to school"),
    ("tractor", "n", ["old", "green", "red"], "on a farm", "{new machines|big machines}", "work", "it was {old|slow and loud}", "One day, a truck full of apples got stuck in the mud.", "It was slow, but it never gave up", "pulled the truck out of the mud"),
]


def thing(s):
    noun, g, adjs, live, others, verb, why, event, how, deed = s.pick(THINGS)
    h = Who(noun, "n", s.name(PETS) if s.chance(0.25) else None, s.pick(adjs), "thing")
    if not h.name:
        h.ref = s.pick(f"the {h.adj} {noun}", f"the {noun}")
    s.v["H"] = h
    s.v["live"] = live
    s.v["O"] = s.pick(others.strip("{}").split("|"))
    s.v["verb"] = verb
    r = s.rng.random()
    if r < 0.55:
        s.one("Once upon a time, there was <H.intro> " + live + ".", "Once upon a time, " + live + ", there was <H.intro>.", "Once upon a time there was <H.intro>.", "Once upon a time, there was <H.intro> that wanted to {be useful|help}.")
    else:
        s.one("There was once <H.intro> " + live + ".", "There was <H.intro> " + live + ".", live + ", there was <H.intro>.", "<H.a> stood {all alone|quietly} " + live + "." if noun not in ("cloud", "star") and not h.name else "There once was <H.intro> " + live + ".", "Long ago, there was <H.intro> " + live + ".")
    s.one("The <O> laughed at it, because " + why + ".", "It wanted to <verb> like the <O>, but " + why + ".", "No one {looked at it|needed it anymore}, because " + why + ".")
    s.one('"{I wish I could help someone|If only I could do something great}," {it thought|said <H>}.', "It was {sad|often sad}, but it {waited|still hoped}.", '"One day I will show them," said <H>.')
    s.par()
    s.say(event)
    s.one('"{Who can help|Who will help us}?" {everyone cried|people asked}.', "No one knew what to do.", "It was a bad {moment|time}.")
    s.one('"I can {do it|help}!" said <H>.', "<H> {did not wait|knew what to do}.", '"Now it is my turn," {thought|said} <H>.')
    s.par()
    s.say(how + ". {It was hard, but it did not stop.|It was hard work.|It tried and tried.} And so <H> " + deed + ".")
    s.one('Everyone {cheered|was so glad}. "{Thank you|Well done|Hooray for you}, <H.call>!" they {called|said}.', "From then on, everyone {was proud of it|loved it}.")
    s.close("That night, <H> {was very happy|could not stop smiling|was proud and glad}.", 'And the <O> said, "{We were wrong|You are the best of us all}."', "And if you {go there|look} today, you can still see it{.|, and maybe it will smile at you.}",
            lesson="{even the small and old can do great things|everyone is good for something}")


def pet(s):
    h = s.child()
    kind = s.pick("puppy", "kitten", "rabbit", "bird", "frog", "hedgehog", "duck", "turtle")
    n = s.name(PETS)
    f = Who(kind, s.pick("m", "f"), n, s.pick("small", "wet", "tiny", "brown", "white"), "animal", ref=n)
    s.v["F"] = f
    s.v["P"] = s.parent(h)
    s.open(h, "More than anything, <H> wanted a pet." , "was on the way home from school")
    s.par()
    s.one("<D> <H> {found|saw} <F.a> {by the road|under a bush|near the gate|in a box}. It had {a hurt foot|no home}.", "<D> <F.a> {sat at the door|followed <H.him> home}. It was {cold|hungry} and alone.")
    s.one('"{You poor thing|Do not be afraid}," said <H>, and {took it home|carried it inside}.', "<H> {wrapped it in <H.his> coat|picked it up gently} and took it home.") if "home" not in s.parts[-1][:60] else s.one('"You poor thing," said <H>, and let it in.')
    s.one('"Can {we|I} keep it, <P.call>? Please!" asked <H>.')
    s.one('"{A pet is a lot of work|You must take care of it every day}," said <P>. "{I will|I promise}," said <H>.', '<P> looked at the <F.noun>. "{It can stay until it is well|We can try}," <P.he> said.')
    s.say('{<H> named the <F.noun> <F>.|"I will call you <F>," said <H>.}')
    s.par()
    s.one("Every {day|morning}, <H> {gave <F> food and water|fed <F>} and {made a warm bed|cleaned the box}.", "<H> {took good care of|looked after} <F>. <H.he> {fed <F.him>|gave <F.him> water} and {told <F.him> stories|sang to <F.him>}.")
    if s.chance(0.5):
        s.one('One day, <F> was gone! <H> looked {everywhere|in the garden and in the street}. {<H.he> called and called.|"<F>! Where are you?"}')
        s.one("At last, <H> found <F.him> {in <H.his> own bed, fast asleep|in the laundry basket|behind the stove, warm and happy}. [<H> laughed.]")
    else:
        s.one("Soon <F> was {well and strong|strong again}. <F.he> {ran|played} with <H> in the garden all day.")
        s.one('"{You have kept your promise|You did very well}," said <P>. "<F> can stay."')
    s.close("<H> {was the happiest <H.boy> in the street|hugged <F> and smiled}.", "That night, <F> slept next to <H>'s bed, and both of them {dreamed|had good dreams}.", "<H> and <F> went everywhere together.",
            friends="<F>", lesson="{a pet needs love every day|it is good to keep a promise}")


def snow(s):
    h = s.hero(0.6, {k: ANIMALS[k] for k in ("bear", "rabbit", "fox", "squirrel", "hedgehog", "mouse", "penguin", "kitten")})
    s.v["F"] = s.child() if h.cls == "child" else s.animal({k: WOODLAND[k] for k in ("rabbit", "fox", "mouse", "badger", "deer", "owl")}, named=True)
    k = s.pick("first", "bird", "mitten")
    s.v["H"] = h
    if s.chance(0.35):
        s.one("It was winter. {Everything was white.|Snow lay on every roof.}", "It was a cold winter day.", "Winter had come. The {pond was frozen|trees were bare}.")
        s.v["D"] = ""
        s.say("<H.intro> {looked out of the window|put on a scarf and went outside}.")
    else:
        s.open(h, "<H> had never seen snow." if k == "first" else None, "went out into the snow")
        s.v["D"] = "One {winter day|winter morning|cold morning}," if s.v["D"].startswith("{One") else ""
        s.par()
    if k == "first":
        s.one("<D> {something white fell|white flakes fell} from the sky. It was {cold|soft and cold} and it {landed on|tickled} <H.his> nose.")
        s.one('"{What is this|Is the sky falling down}?" asked <H>. "{It is snow|That is snow}!" said <F>, <H.his> friend.')
        s.par()
        s.one("<F> showed <H.him> how to {make a snowball|build a snowman}. They {rolled a big ball|threw snowballs} and {laughed|fell over in the snow}.", "They {slid down the hill|made angels in the snow} again and again.")
        s.one("They made a snowman with {a carrot nose|two stones for eyes}. <H> gave him {<H.his> own hat|a scarf}.", "Their noses were red and their feet were cold, but {they did not care|they were happy}.")
        s.one('In the evening, they {drank hot chocolate|sat by the fire}. "{Will it be here tomorrow|Does the snow stay for ever}?" asked <H>. "{Only in winter|No, but it comes back every year}," said <F>.')
        s.close("That night, the snow fell {quietly|softly}, and <H> dreamed of {white hills|snowmen}.", '"{Winter is my favorite time|I love snow}," said <H>.', friends="<F>")
    elif k == "bird":
        s.one("<D> <H> {saw|found} a small bird {in the snow|on the fence}. It was too cold to {fly|sing}.")
        s.one("<H> {carried it inside|held it in warm hands}. <H.his> friend <F> brought some seeds.") if h.cls == "child" else s.one("<H> took it home, where it was warm. <H.his> friend <F> brought some seeds.")
        s.par()
        s.one("All winter, the bird lived {in a basket by the stove|on the warm shelf}. It {grew strong|ate seeds} and {sang for them|began to sing}.", "Day by day, the bird got stronger. One morning, it began to sing.")
        s.one('When spring came, {they|<H> and <F>} opened the window. "{It wants to fly|It must be free}," said <F>. <H> was sad, but <H.he> {nodded|said goodbye}.')
        s.one("The bird flew {around the house|once around the room} and away into the blue sky.")
        s.close("The next winter, there was a tap at the window. The bird was back!", "And every {spring|morning}, it came back to sing {for them|at the window}.", lesson="{if you love someone, you let them be free|a kind deed is never lost}")
    else:
        s.v["m"] = m = s.pick("mitten", "scarf", "hat")
        s.one("<D> <H> lost <H.his> {red|warm|blue} <m> in the snow.")
        s.one("<H> looked {everywhere|behind every tree}, but the snow had {covered everything|hidden it}.")
        s.par()
        s.one("Then <H> saw {something move|a bit of color} {under a tree|behind a log}. It was the <m>! And inside sat {a tiny mouse|a small beetle|a little bird}{.|, shaking with cold.}")
        an = "mouse" if "mouse" in s.parts[-1] else "beetle" if "beetle" in s.parts[-1] else "bird"
        s.v["an"] = an
        s.one('"{It is so warm in here|Please let me stay}," said the <an>. "{My house is full of snow|It is so cold outside}."')
        s.one('<H> {thought for a moment|smiled}. "{You can keep it|You need it more than I do}," <H.he> said.')
        s.par()
        s.one('At home, <H> told <H.his> friend <F> about it. "That was kind," said <F>, and {gave <H.him>|made <H.him>} a new <m>.')
        s.close("And all winter long, the <an> {was warm|slept in a warm bed}.", "In spring, {the <m> hung on <H>'s door, clean and dry. Inside was a sweet berry|the <an> came to say thank you}." if h.name else "In spring, the <an> came to say thank you.", lesson="{giving can make you warm inside|it feels good to give}")


def teach(s):
    skill = s.pick([("ride a bike", "fell over", "rode all the way down the street", "child"), ("swim", "swallowed some water", "swam across the pond", "any"), ("whistle", "only air came out", "whistled a whole song", "any"),
                    ("tie {P} shoes", "the string came loose", "tied both shoes", "child"), ("skate", "sat down on the ice", "skated in a big circle", "any"), ("read", "the letters danced before {P} eyes", "read a whole page", "any"),
                    ("dance", "stepped on someone's foot", "danced around the room", "any"), ("jump over the stream", "landed in the water", "jumped right over it", "any"), ("juggle", "all the balls fell down", "juggled three apples", "any"), ("fly", "fell into the grass", "flew from tree to tree", "bird")])
    if skill[3] == "bird":
        h = s.animal(["bird", "owl", "duck", "dragon"], adj=s.pick("little", "young", "small"))
    else:
        h = s.hero(1.0 if skill[3] == "child" else 0.6, {k: ANIMALS[k] for k in ("bear", "rabbit", "fox", "penguin", "mouse", "kitten", "frog", "monkey")})
    if skill[0] == "swim":
        while h.noun in ("frog", "penguin", "bear"):
            h = s.child()
    s.v["F"] = s.parent(h) if s.chance(0.5) or skill[3] == "bird" else (s.child() if h.cls == "child" else s.animal(WOODLAND, named=True, adj=s.pick("old", "kind", "big")))
    f = s.v["F"]
    for key, x in zip(("do", "fail", "win"), skill):
        s.v[key] = x.replace("{P}", h.his)
    s.v["did"] = "<fail>" if s.v["fail"].split()[0] in ("only", "the", "all") else "<H.he> <fail>"
    s.open(h, "<H> wanted to learn to <do>.", "wanted to learn to <do>")
    if s.v["do"] not in " ".join(s.parts):
        s.say("<H> wanted to learn to <do>.")
    s.par()
    s.one("<D> <H> tried it {for the first time|all alone}, but <did>.", "<D> <H> tried. But <did>. <H.he> tried again, and <did> again.")
    s.one('"{It is too hard|I can not do it|I will never learn it}," said <H>.', "The others {laughed|could do it already}. <H> {felt bad|wanted to give up}.")
    s.say('<F> {saw it|smiled}. "{When I was small, I could not do it either|I will show you how|No one can do it the first time}," <F.he> said.' if f.cls == "adult" else '<F.intro> {saw it|came by}. "{Once I could not do it either|I will show you how|No one can do it the first time}," said <F>.')
    s.par()
    s.one("{Every day|Day after day}, they practiced {in the morning|together|a little}. {Some days were good, and some days were not.|Little by little, it got better.}", '"{Again|Once more|Try again}," said <F>. And <H> tried again. And again.')
    s.one("Then, {on the seventh day|one day|one fine day}, it happened. <H> <win>!", "And at last, <H> <win>!")
    s.one('"{Look, look|I can do it}!" {shouted|cried} <H>.', '<F> clapped. "{I knew you could do it|You did not give up}," <F.he> said.')
    s.close("<H> was so proud. {<H.he> did it again and again until dark.|That night, <H.he> dreamed about it.}", 'Soon, <H> {showed a smaller friend how to <do>}. "{No one can do it the first time|Do not give up}," said <H>.', "And now <H> can <do> {better than anyone|very well}.",
            lesson="{if you keep trying, you get better|practice makes it easy}")


def help_old(s):
    """A neighbor who is thought to be grumpy."""
    h = s.child()
    w = s.pick(("Mrs.", "f", "woman"), ("Mr.", "m", "man"))
    f = Who(w[2], w[1], f"{w[0]} " + s.pick("Brown", "Green", "Hill", "Wood", "Stone", "Bell", "Moss", "Field", "Rose", "Fox"), "old", "neighbor")
    s.v["F"] = f
    s.v["th"] = s.pick([("ball", "went over the fence into"), ("kite", "got stuck in a tree in"), ("paper plane", "flew over the fence into"), ("hat", "was blown by the wind into")])
    th = s.v["th"]
    s.v.update(t=th[0], went=th[1])
    s.open(h, "Next door lived <F>. Everyone said that <F.he> was {mean|angry}.", "was playing in the garden")
    if f.name not in " ".join(s.parts):
        s.say("Next door lived <F>. Everyone said that <F.he> was {mean|angry}.")
    s.par()
    s.say("<D> <H>'s <t> <went> the garden of <F>." if s.v["D"] else "<H>'s <t> <went> the garden of <F>.")
    s.one("<H> was afraid, but <H.he> wanted <H.his> <t> back. <H.he> {knocked at the door|opened the gate}.", "<H> {stood at the gate for a long time|took a deep breath}. Then <H.he> knocked at the door.")
    s.one('The door opened slowly. "{What do you want|Who is there}?" asked <F>. "I am sorry. My <t> is in your garden," said <H>.')
    s.par()
    s.one('<F> {looked at <H.him>|was quiet}. Then <F.he> {smiled|began to smile}. "{No one has knocked at my door for a long time|Come in, I have just made tea}," <F.he> said.')
    s.one("<F> was not {mean|angry} at all. <F.he> was only lonely. {<F.he> had many stories to tell.|<F.he> had a cat, a piano and a jar full of cookies.}", '<H> saw that {the garden was full of weeds|the fence was broken}, because <F> could not bend down anymore. "{I can help you with that}," said <H>.')
    s.one("They {ate cookies and talked|drank tea and laughed} {until evening|all afternoon}.", "{The next day|On Saturday}, <H> came back with some friends. They {cleaned the garden|painted the fence|picked the apples}, and <F> made {lemonade|pancakes} for everyone.")
    s.close("Now <H> visits <F> every {week|Sunday}, and {the gate is always open|no one says that <F> is mean}.", '"{You can throw your <t> over my fence any time|Come back soon}," said <F>. And <H> {did|laughed}.',
            friends="<F>", lesson="{you should not believe everything people say|a kind word can open any door}")


PLOTS = [(lost_toy, 9), (lost_young, 6), (afraid, 7), (sharing, 7), (making, 8), (journey, 8), (lonely, 7), (birthday, 4), (truth, 5), (rescue, 6),
         (race, 4), (seed, 5), (rainy, 5), (treasure, 6), (sleepless, 5), (quarrel, 5), (wish, 4), (sick, 4), (fog, 5), (dragon, 6), (market, 4),
         (messy, 3), (thing, 5), (pet, 5), (snow, 4), (teach, 6), (help_old, 4)]


TOPICS = {lost_toy: "a lost <toy>", lost_young: "a lost <F.noun>", afraid: "being brave", sharing: "sharing", making: "<thing>", journey: "a long {trip|walk}",
          lonely: "{friends|finding a friend}", birthday: "a birthday", truth: "{the truth|telling the truth}", rescue: "{helping|helping others}", race: "a race",
          seed: "<np>", rainy: "a rainy day", treasure: "{a treasure|<find>}", sleepless: "{the night|bedtime}", quarrel: "{two friends|saying sorry}",
          sick: "a sick friend", fog: "being lost", market: "the market", messy: "cleaning up", pet: "a pet", snow: "{winter|the snow}"}


def request(s, plot):
    """What a reader might ask to be told this very story; the chat template puts such a line before it."""
    h, about = s.v["H"], ["a <H.noun>", "a <H.noun>", "<H.a>", "<H.intro>"]
    if h.name:
        about.append("a <H.noun> {named|called} <H>")
    if h.name and h.cls == "child":
        about.append("<H>")
    if plot in TOPICS:
        about += [TOPICS[plot]] * 2
    ask = s.pick("{Tell me|Please tell me|Write|Tell us} a {story|story|little story} about <X>.", "{Can you tell|Could you tell|Will you tell} me a {story|little story} about <X>?",
                 "{A story about <X>, please.|I want {to hear|} a story about <X>.}", "{Tell me a story.|Please tell me a story.|A story, please!}" if s.chance(0.3) else "Tell me a story about <X>.")
    s.v["X"] = s.pick(about)
    return s.expand(ask)
