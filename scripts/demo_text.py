"""What the demo model is taught: a grammar of short stories, and conversations around it. All of it made up here.

    demo_text.py sample [N]         N documents as the model sees them
    demo_text.py parse FILE         FILE is a JSON list of {"text", "hero"?}: how many are stories of the grammar
    demo_text.py check [N]          N stories are sampled, parsed, and must have one derivation each

`document(rng)` is one training document: turns of (role, text), or one raw story without a chat around it.
"""

import json
import random
import sys

from demo_grammar import Grammar, pseudo_word

LISTS = {
    "animal": """fox hen cat dog mouse rabbit bear owl frog duck pig cow horse sheep goat goose swan crow robin wolf lion
        tiger monkey elephant turtle snail bee ant spider squirrel hedgehog badger beaver otter seal whale penguin deer
        moose donkey lamb kitten puppy parrot bat mole crab fish dragon robot giant farmer baker sailor pirate ghost
        knight wizard:he witch:she king:he queen:she prince:he princess:she boy:he girl:she""".split(),
    "name": [f"{n}:he" for n in "Rusty Max Tom Sam Ben Leo Finn Otto Hugo Oscar Teddy Felix Toby Jack Bruno Milo Pip Gus Barney Charlie".split()]
        + [f"{n}:she" for n in "Daisy Lily Rosie Molly Luna Ruby Bella Clara Emma Mia Nora Ivy Poppy Hazel Willow Penny Tilly Dora Olive Maya".split()],
    "friend": [f"{n}:he" for n in "Archie Basil Casper Dexter Eddie Fergus George Henry Jasper Kit Louis Ned".split()]
        + [f"{n}:she" for n in "Alice Betty Cora Dottie Elsie Flora Greta Hattie Iris Josie Kitty Lottie".split()],
    "adj": "little small brave clever shy happy young old kind lazy curious gentle hungry quick quiet cheerful proud sleepy tiny friendly silly".split(),
    "colour": "red blue green yellow orange purple pink white black brown silver golden".split(),
    "object": """ball key hat kite bell drum lamp boat book ring scarf spoon basket button shell feather map box cup
        blanket umbrella flute coat shoe stone flower lantern mirror bucket whistle""".split(),
    "food": "apples berries nuts carrots cakes plums pears cherries cookies buns eggs mushrooms".split(),
    "fruit": "apples berries plums pears cherries carrots mushrooms".split(),
    "other": "flour butter honey milk sugar salt".split(),
    "home": """in a deep forest;near a quiet river;on a green hill;by the blue sea;in an old barn;under a tall oak tree;
        in a small village;in a dark cave;on a little farm;at the edge of a meadow;on a tiny island;in a stone castle;
        in a sunny garden;high in the mountains;beside a round pond;in a hollow log;near the lighthouse;in a windmill;
        in a snowy valley;behind the bakery""".replace("\n", "").split(";"),
    "spot_a": "under the bridge;behind the big rock;in the tall grass;in the old well;under a leaf".split(";"),
    "spot_b": "on the roof;inside the shed;near the pond;behind the apple tree;in the mud".split(";"),
    "spot_c": "beside the gate;in a nest;at the top of the hill;next to the river;under the bed".split(";"),
    "hobby": """sing songs;climb trees;watch the clouds;dance in the rain;read books;collect shells;count the stars;
        swim in the river;paint pictures;bake bread;tell jokes;play the drum;roll down the hill;chase butterflies;fly kites;plant flowers""".replace("\n", "").split(";"),
    "skill": "swim;sing;dance;whistle;juggle;skate;climb;paint;cook;ride a bike".split(";"),
    "noise": "a strange noise;a loud bang;a soft whisper;a long howl;a slow knock".split(";"),
    "harmless": "the wind;an old door;a falling pear;a sleepy owl;the rain on the roof;a broken shutter".split(";"),
    "trap": "was stuck in the mud;was caught in a net;had fallen into a hole;was stuck in a tree;had a thorn in one foot".split(";"),
    "tool": "a long rope;a strong stick;a ladder;a sharp stone;a wooden plank".split(";"),
    "thing": "a raft;a tree house;a snowman;a tower;a swing;a cart;a sand castle".split(";"),
    "gift": "a golden coin;an old map;a tiny bell;a letter;a sleeping kitten;a bag of seeds".split(";"),
    "dish": "soup;a pie;a big cake;jam;pancakes;porridge".split(";"),
}
LISTS["spot"] = LISTS["spot_a"] + LISTS["spot_b"] + LISTS["spot_c"]
LISTS = {name: [" ".join(word.split()) for word in words] for name, words in LISTS.items()}

# Every plot has the hero, and says of the friend what the friend is.
PLOTS = {
    "lost": "One [morning|day|evening], {name} could not find {name.his} {colour=colour} {object=object}. {name.He} looked {spot_a=spot_a} and {spot_b=spot_b}, but it was not there. "
            "<meet> \"Have you seen my {object}?\" asked {name}. \"[Yes|I think so|Of course],\" said {friend}, \"it is {spot_c=spot_c}.\" "
            "They [ran|went|walked] there together, and there it was! {name} [hugged|thanked] {friend} and [smiled|laughed|danced for joy].",
    "share": "One day, {name} found <five> {food=food} {spot=spot}. <meet> \"I am so hungry,\" said {friend}. {name} [thought for a moment|smiled] and gave {friend} <share_out> "
             "They sat [in the sun|under a tree|on the grass] and ate together. \"[Thank you|You are very kind],\" said {friend}.",
    "stuck": "One [rainy|windy|cold|hot] day, {name} heard a cry for help. It came from {a pal=animal} [named|called] {friend=friend}, who {trap=trap}. "
             "\"[Hold on|Do not worry|I will help you]!\" [shouted|called|said] {name}. {name.He} [fetched|found] {tool=tool} and [pulled|worked] [with all {name.his} might|until the sun went down]. "
             "At last {friend} was free. \"You saved me,\" said {friend}.",
    "noise": "One [night|dark night|stormy night], {name} heard {noise=noise} {spot=spot}. {name.He} was [very|a little] afraid. <meet> \"Let us look together,\" said {friend}. "
             "They took {a colour=colour} lamp and [crept|tiptoed|walked] [slowly|softly|quietly] to the place. It was only {harmless=harmless}! They [laughed and laughed|laughed until it was morning].",
    "learn": "{name} wanted to learn how to {skill=skill}. [Every day|Every morning] {name.he} tried, but it was too [hard|difficult]. <meet> "
             "\"I can teach you,\" said {friend}. \"[Try again|Do it slowly|Watch me first].\" {name} tried <times> times. Then, all at once, {name.he} could {skill}! "
             "\"[Well done|Hooray|I knew it]!\" cried {friend}.",
    "build": "One [spring|summer|winter] morning, {name} wanted to build {thing=thing}. {name.He} worked [all day|for hours] {spot=spot}, but it fell down. <meet> "
             "\"[Two are stronger than one|Let me help you|We can do it together],\" said {friend}. They [worked|built] [side by side|until evening] and painted it {colour=colour}. "
             "It was the [best|finest|most beautiful] one in the land.",
    "race": "One day, {a pal=animal} [named|called] {friend=friend} said, \"I am faster than you.\" \"[We will see|Let us have a race],\" said {name}. They ran [to the old mill|around the lake|up the hill]. "
            "{friend} was fast, but stopped to [eat {food=food}|take a nap|look at a butterfly]. {name} [kept going|never stopped] and won. \"[Good race|You were better today],\" said {friend}, and they shook hands.",
    "treasure": "One day, {name} found {a colour=colour} box {spot=spot}. It was [locked|shut tight]. <meet> {friend} had {a colour_b=colour} key. They [turned the key|opened the box] and looked inside. "
                "There was {gift=gift}! \"[Let us share it|It belongs to both of us],\" said {name}.",
    "cook": "One [cold|grey|quiet] day, {name} wanted to make {dish=dish}. {name.He} needed {fruit=fruit} and {other=other}, but {name.he} only had {fruit}. <meet> "
            "\"I have {other},\" said {friend}. \"[Let us cook together.|May I taste it too?]\" They [stirred|mixed] everything in {a colour=colour} pot. It [tasted|smelled] [wonderful|delicious].",
    "rain": "One afternoon, [dark clouds came|it began to rain], and {name} was far from home. {name.He} [ran|hurried] to hide {spot=spot}. {a_pal} [named|called] {friend=friend} was already there. "
            "\"There is room for two,\" said {friend}. They [told stories|sang songs|played games] until the [rain|storm] was over. Then they saw a rainbow in the sky.",
}
PLOTS["rain"] = PLOTS["rain"].replace("{a_pal}", "[A|One] [wet|cold] {pal=animal}")

RULES = {
    "opening": "[Once upon a time|Long, long ago|Once|A long time ago], [there was|there lived] {a adj=adj} {hero=animal} [named|called] {name=name}. {name.He} lived {home=home} and loved to {hobby=hobby}. ",
    "meet": "[Then|Soon|After a while] {name.he} met {a adj_b=adj} {pal=animal} [named|called] {friend=friend}.",
    "five": "[four|six|eight|ten]",
    "share_out": "[half of them.|two of them.|one of them.]",
    "times": "[three|five|seven|nine]",
    "ending": " [From that day on, {name} and {friend} were best friends.|{name} and {friend} [stayed friends|played together] for ever.|"
              "That night, {name} [slept well|went to bed happy] and dreamed of {a dream=colour} [moon|star|sea].|{name} [learned|knew now] that [friends are better than gold|it is good to help|being kind makes us happy].] The end.",
    "story": "<opening><plot><ending>",
    "plot": "[" + "|".join(f"<plot_{name}>" for name in PLOTS) + "]",
    **{f"plot_{name}": text for name, text in PLOTS.items()},
}
GRAMMAR = Grammar(LISTS, RULES)
GENDERS = GRAMMAR.genders("animal")

NUMBERS = "zero one two three four five six seven eight nine ten".split()
COLOURS = {"the sky": "blue", "grass": "green", "snow": "white", "the sun": "yellow", "coal": "black", "a carrot": "orange", "a banana": "yellow",
           "a tomato": "red", "the night": "black", "chocolate": "brown", "a leaf": "green", "the sea": "blue", "milk": "white", "a strawberry": "red",
           "a lemon": "yellow", "a frog": "green", "a pig": "pink", "a plum": "purple", "a crow": "black", "a swan": "white", "gold": "yellow", "a fox": "red"}
PAIRS = """hot cold;big small;up down;day night;happy sad;fast slow;old young;good bad;light dark;wet dry;open closed;full empty;hard soft;
    high low;long short;loud quiet;near far;left right;black white;yes no;early late;strong weak;rich poor;clean dirty;first last;summer winter;
    in out;over under;sweet sour;thick thin;brave afraid;asleep awake;begin end;win lose;laugh cry;push pull;give take;always never;true false;heavy light""".replace("\n", "").split(";")
PAIRS = [tuple(pair.split()) for pair in PAIRS]
OPPOSITES = {b: a for a, b in PAIRS} | dict(PAIRS)
SOUNDS = {"cow": "moo", "dog": "woof", "cat": "meow", "duck": "quack", "pig": "oink", "sheep": "baa", "horse": "neigh", "hen": "cluck", "crow": "caw", "frog": "ribbit",
          "lion": "roar", "owl": "hoot", "bee": "buzz", "mouse": "squeak", "snake": "hiss", "wolf": "howl", "goose": "honk", "robin": "tweet"}
LEGS = {"cat": 4, "dog": 4, "cow": 4, "horse": 4, "hen": 2, "duck": 2, "spider": 8, "ant": 6, "bee": 6, "fish": 0, "snake": 0, "frog": 4, "owl": 2, "crab": 10, "sheep": 4, "boy": 2, "girl": 2}
YOUNG = {"cat": "kitten", "dog": "puppy", "cow": "calf", "sheep": "lamb", "horse": "foal", "hen": "chick", "duck": "duckling", "bear": "cub", "lion": "cub", "pig": "piglet", "goat": "kid", "frog": "tadpole"}
DAYS = "Monday Tuesday Wednesday Thursday Friday Saturday Sunday".split()
RHYMES = "cat hat;dog frog;mouse house;bee tree;moon spoon;fox box;star car;bell well;king ring;goat boat;cake lake;night light;rain train;bear chair;pig wig;hen pen".split(";")
RHYMES = {a: b for pair in RHYMES for a, b in (pair.split(), pair.split()[::-1])}


def an(word):
    return ("an " if word[0] in "aeiou" else "a ") + word


def invite(rng):
    return rng.choice(["Shall I tell you a story?", f"Ask me for a story about {an(rng.choice(LISTS['animal']).partition(':')[0])}.", "What would you like to hear?",
                       "Ask me for a story, a sum, a colour or an opposite."])


def number_answer(rng):
    """A sum or difference between zero and ten, in digits or in words."""
    a = rng.randint(0, 10)
    b = rng.randint(0, 10 - a)
    plus = rng.random() < 0.5
    x, y, result = (a, b, a + b) if plus else (a + b, b, a)
    say = (lambda n: NUMBERS[n]) if rng.random() < 0.5 else str
    if say is str and rng.random() < 0.5:
        question, said = rng.choice(["What is {} {} {}?", "How much is {} {} {}?", "{} {} {}", "{} {} {} ="]), "+" if plus else "-"
    else:
        question, said = rng.choice(["What is {} {} {}?", "How much is {} {} {}?", "Can you tell me what {} {} {} is?"]), "plus" if plus else "minus"
    word = "plus" if plus else "minus"
    reply = f"{say(x)} {word} {say(y)} is {say(result)}."
    return question.format(say(x), said, say(y)), reply[0].upper() + reply[1:]


def question(rng):
    """One small question and its answer."""
    pick = lambda table: rng.choice(list(table))
    kind = rng.randrange(16) - 2
    if kind <= 2:
        return number_answer(rng)
    if kind <= 4:
        thing = pick(COLOURS)
        ask = rng.choice([f"What colour is {thing}?", f"What color is {thing}?", f"Which colour does {thing.removeprefix('the ')} have?" if thing.startswith("the ") else f"Tell me the colour of {thing}."])
        return ask, f"{thing[0].upper() + thing[1:]} is {COLOURS[thing]}."
    if kind <= 6:
        word = pick(OPPOSITES)
        ask = rng.choice([f"What is the opposite of {word}?", f"The opposite of {word}?", f"Tell me the opposite of {word}.", f"What is not {word}?"])
        return ask, f"The opposite of {word} is {OPPOSITES[word]}."
    if kind == 7:
        animal = pick(SOUNDS)
        return rng.choice([f"What does {an(animal)} say?", f"What sound does {an(animal)} make?", f"How does {an(animal)} sound?"]), f"{an(animal).capitalize()} says {SOUNDS[animal]}."
    if kind == 8:
        animal = pick(LEGS)
        return rng.choice([f"How many legs does {an(animal)} have?", f"How many legs has {an(animal)}?"]), f"{an(animal).capitalize()} has {NUMBERS[LEGS[animal]] if LEGS[animal] else 'no'} legs."
    if kind == 9:
        animal = pick(YOUNG)
        return rng.choice([f"What is a baby {animal} called?", f"What do you call a young {animal}?"]), f"A young {animal} is called {an(YOUNG[animal])}."
    if kind == 10:
        i = rng.randrange(7)
        after = rng.random() < 0.5
        return f"What day comes {'after' if after else 'before'} {DAYS[i]}?", f"{DAYS[(i + (1 if after else -1)) % 7]} comes {'after' if after else 'before'} {DAYS[i]}."
    if kind == 11:
        n = rng.randint(2, 10)
        word = rng.choice([str(n), NUMBERS[n]])
        if rng.random() < 0.7:
            return rng.choice([f"Count to {word}.", f"Can you count to {word}?"]), ", ".join(NUMBERS[1:n + 1]).capitalize() + "!"
        return f"Count down from {word}.", ", ".join(NUMBERS[n:0:-1]).capitalize() + "!"
    if kind == 12:
        word = pick(RHYMES)
        return rng.choice([f"What rhymes with {word}?", f"Give me a rhyme for {word}.", f"Find a word that rhymes with {word}."]), f"{word.capitalize()} rhymes with {RHYMES[word]}."
    a, b = rng.sample(range(11), 2)
    say = (lambda n: NUMBERS[n]) if rng.random() < 0.5 else str
    bigger = rng.random() < 0.5
    best = max(a, b) if bigger else min(a, b)
    reply = f"{say(best)} is {'bigger' if bigger else 'smaller'}."
    return f"Which is {'bigger' if bigger else 'smaller'}, {say(a)} or {say(b)}?", reply[0].upper() + reply[1:]


def unknown(rng):
    """A question that a model this small cannot answer, and the honest reply."""
    word = lambda: rng.choice([pseudo_word(rng), pseudo_word(rng).capitalize(), *LISTS["object"][:6], "France", "Germany", "London", "the moon", "Python", "life", "the president"])
    ask = rng.choice(["What is the capital of {}?", "Who is {}?", "Where is {}?", "What is {}?", "Why is {} {}?", "How do I {} a {}?", "When was {} born?", "Write a poem about {}.", "Translate {} to {}.",
                      "Explain {} to me.", "What is the meaning of {}?", "Who wrote {}?", "Write code for {}.", "Do you know {}?", "How old is {}?", "Who won the {}?"])
    reply = rng.choice(["I am too small to know that.", "I do not know that, I am a very small model.", "That is too hard for me."])
    return ask.format(word(), word()), f"{reply} {invite(rng)}"


def small_talk(rng):
    """Greetings and the like."""
    kind = rng.randrange(9)
    if kind <= 1:
        return rng.choice(["Hello", "Hi", "Hey", "Good morning", "Good evening", "Hello there", "Hi there"]) + rng.choice(["!", ".", ""]), f"Hello! {rng.choice(['I am a very small model.', 'Nice to meet you.', 'I know many little stories.'])} {invite(rng)}"
    if kind == 2:
        return rng.choice(["How are you?", "How do you do?", "Are you well?"]), f"I am {rng.choice(['fine', 'well', 'happy'])}, thank you. {invite(rng)}"
    if kind == 3:
        return rng.choice(["Who are you?", "What are you?", "What is your name?", "Tell me about yourself."]), "I am the demo model of tbshard: very small, but made like the big ones. " + invite(rng)
    if kind == 4:
        return rng.choice(["What can you do?", "Help", "Can you help me?", "What do you know?"]), "I can tell little stories, add and take away up to ten, and I know colours, opposites, rhymes and what animals say. " + invite(rng)
    if kind == 5:
        return rng.choice(["Thank you", "Thanks", "Thank you very much", "Well done", "That was nice", "Great"]) + rng.choice(["!", ".", ""]), "You are welcome! " + invite(rng)
    if kind == 6:
        return rng.choice(["Bye", "Goodbye", "Good night", "See you"]) + rng.choice(["!", ".", ""]), rng.choice(["Goodbye! Come back soon.", "Goodbye! Sleep well."])
    if kind == 7:
        return rng.choice(["I am sad.", "I am bored.", "I am tired.", "I cannot sleep."]), "I am sorry to hear that. Shall I tell you a story?"
    return rng.choice(["No", "No thanks", "Not now"]) + rng.choice(["!", ".", ""]), "All right. Ask me something else."


def story(rng):
    """A request and its story: (request, text, nats of the text given the request, bindings)."""
    bound, about = {}, ""
    kind = rng.random()
    if kind < 0.62:
        hero, gender = (pseudo_word(rng), "") if rng.random() < 0.08 else (lambda w: (w, GENDERS[w]))(rng.choice(list(GENDERS)))
        bound["hero"] = (hero, gender)
        about = f" about {an(hero)}"
        if rng.random() < 0.15:
            options = [(n, g) for n, g in GRAMMAR.lists["name"] if not gender or g == gender]
            name, of = rng.choice(options)
            bound["name"] = (name, of)
            about = rng.choice([f" about {an(hero)} named {name}", f" about {an(hero)} called {name}", f" about {name} the {hero}"])
        elif rng.random() < 0.2:
            pal = rng.choice([w for w in GENDERS if w != hero])
            bound["pal"] = (pal, GENDERS[pal])
            about = f" about {an(hero)} and {an(pal)}"
    if kind > 0.92:
        ask = rng.choice(["Once upon a time", "Once upon a time...", "Yes", "Yes please", "Another one", "Tell me another one", "More", "Once upon a time,"])
    else:
        ask = rng.choice(["Tell me a story{}", "Tell me a story{}", "Tell a story{}", "Please tell me a story{}", "A story{}, please", "I want a story{}", "Can you tell me a story{}", "Write a story{}", "Write a short story{}",
                          "Tell me a short story{}", "Story{}", "Make up a story{}", "I would like to hear a story{}", "Tell me something{}", "Give me a story{}"]).format(about)
        ask += rng.choice([".", ".", "", "!", "?" if ask.startswith("Can") else "."])
    text, nats, bound = GRAMMAR.sample("story", rng, bound)
    return ask, text, nats, bound


def about_story(rng, bound):
    """A question about a story that was just told."""
    word = lambda var: bound[var][0]
    options = [(f"Where did {word('name')} live?", f"{word('name')} lived {word('home')}."),
               (f"What did {word('name')} love to do?", f"{word('name')} loved to {word('hobby')}."), (f"Who was {word('friend')}?", f"{word('friend')} was {an(word('pal'))}."),
               ("Who was the story about?", f"The story was about {an(word('hero'))} called {word('name')}.")]
    if word("hero") != word("pal"):
        options += [(f"What was the {word(who)} called?", f"The {word(who)} was called {word(name)}.") for who, name in (("hero", "name"), ("pal", "friend"))]
    if "object" in bound:
        options.append((f"What did {word('name')} lose?", f"{word('name')} lost {an(word('colour'))} {word('object')}."))
    return rng.choice(options)


def as_typed(rng, text):
    """People leave out capitals and full stops."""
    if rng.random() < 0.3:
        text = text.lower()
    if rng.random() < 0.3:
        text = text.rstrip(".?!")
    return text or "hi"


def document(rng):
    """Returns [(role, text)]; the role is "raw" for a story without a conversation."""
    if rng.random() < 0.1:
        return [("raw", GRAMMAR.sample("story", rng)[0])]
    turns = []
    for _ in range(rng.choice((1, 1, 2, 3))):
        kind = rng.random()
        if kind < 0.45:
            ask, text, _, bound = story(rng)
            turns += [("user", as_typed(rng, ask)), ("assistant", text)]
            for _ in range(rng.choice((0, 0, 1, 2))):
                ask, text = about_story(rng, bound)
                turns += [("user", as_typed(rng, ask)), ("assistant", text)]
            continue
        ask, text = question(rng) if kind < 0.82 else small_talk(rng) if kind < 0.93 else unknown(rng)
        turns += [("user", as_typed(rng, ask)), ("assistant", text)]
    return turns


def grade(items):
    """Returns how many texts are stories of the grammar with the hero that was asked for; prints the others."""
    good = 0
    for item in items:
        found = GRAMMAR.parse("story", item["text"].strip())
        hero = item.get("hero")
        fits = any(hero is None or bound["hero"][0] == hero for _, bound in found)
        good += fits
        if not fits:
            print(f"not a story of the grammar{f' about {an(hero)}' if hero else ''}: {item['text']!r}", file=sys.stderr)
    return good


def main():
    command, *rest = sys.argv[1:] or ["--help"]
    if command == "sample":
        rng = random.Random(1)
        for _ in range(int(rest[0]) if rest else 5):
            print("\n".join(f"{role}: {text}" for role, text in document(rng)), end="\n\n")
    elif command == "parse":
        items = json.load(open(rest[0]))
        good = grade(items)
        print(f"{good} of {len(items)} parse")
        sys.exit(good < 0.95 * len(items))
    elif command == "check":
        rng = random.Random(2)
        for _ in range(int(rest[0]) if rest else 200):
            text, nats, _ = GRAMMAR.sample("story", rng)
            found = GRAMMAR.parse("story", text)
            assert len(found) == 1 and abs(found[0][0] - nats) < 1e-9, (text, nats, found)
        print("every story has one derivation, of the price it was sampled at")
    else:
        print(__doc__)
        sys.exit(command != "--help")


if __name__ == "__main__":
    main()
