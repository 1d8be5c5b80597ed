"""Words for the embedded spaCy pipeline: nouns by topic (with synonyms), adjectives, verbs with their forms.

Nouns: topics hold concepts, separated by commas; `=` joins words for one concept ("plane=airplane"). A `*` marks mass
nouns (no plural, no "a"), a `+` plural-only nouns. The same table places the words in the vector space, see
`embedded.english.pipeline`.
"""

from __future__ import annotations


def _words(text: str) -> list[str]:
    return text.split()


NOUNS = {
    "shape": "star, heart, moon=crescent, sun, circle=disc, square, triangle, rectangle, diamond, cross, arrow, ring, "
    "shape=figure, spiral, dot=spot, stripe=line, symbol=sign=icon, silhouette=outline",
    "chess": "rook, knight, pawn, bishop, queen, king, crown=tiara, chessboard, castle",
    "cards": "club, spade, clover=shamrock, card, ace",
    "person": "person=human=individual, man=gentleman=guy, woman=lady, boy, girl, child=kid=toddler, baby=infant, "
    "player=athlete, batter, pitcher, catcher, skier, snowboarder, surfer, rider=cyclist=biker, skateboarder, "
    "chef=cook, doctor=nurse, teacher, student, worker, farmer, police officer=policeman, firefighter, "
    "soldier, couple, crowd=audience, family, team, friend, tourist=visitor, pedestrian, driver, passenger, "
    "bride, groom, umpire=referee, astronaut, clown, dancer, musician, snowman",
    "body": "hand, arm, leg, foot, head, face, hair*, eye, ear, nose, mouth, tooth, beard, mustache, back, shoulder, "
    "finger, neck, tail, wing, fur*, paw, beak, feather, mane, trunk",
    "animal": "dog=puppy, cat=kitten, horse=pony=foal, cow=bull=calf, sheep=lamb, goat, pig, elephant, giraffe, zebra, "
    "bear=cub, lion, tiger, monkey, rabbit=bunny, mouse, squirrel, fox, wolf, deer, bird, duck, goose, swan, "
    "chicken, parrot, seagull, eagle, owl, penguin, fish, shark, whale, turtle, frog, snake, lizard, "
    "butterfly, bee, spider, animal=creature",
    "vehicle": "car=sedan=vehicle=automobile, truck=lorry, bus, van, taxi=cab, train, locomotive, tram=trolley, "
    "motorcycle=motorbike, bicycle=bike, scooter, airplane=plane=jet=aircraft, helicopter, boat=canoe, "
    "ship=ferry, kayak, carriage=cart=wagon, tractor, ambulance, trailer, wheel=tire, engine, anchor, sail, "
    "windshield, headlight, parachute",
    "street": "street=road, highway, sidewalk=pavement, intersection=crossroad, traffic light=stoplight, stop sign, "
    "fire hydrant, parking meter, lamp post=streetlight, bridge, tunnel, parking lot, curb, crosswalk, "
    "traffic*, path=trail, track, station, platform, airport, runway, harbor=port, dock=pier",
    "building": "building=structure, house=home=cottage, tower, church=cathedral, barn, store=shop=market, "
    "restaurant=cafe, hotel, school, office, skyscraper, roof, wall, window, door, fence, gate, chimney, "
    "balcony, stairs+, ceiling, floor, garage, lighthouse, city=town=village, brick, column, porch, patio",
    "nature": "tree, forest=woods+, bush=shrub, grass*=lawn, flower=blossom=rose=daisy, leaf, branch, plant, "
    "field=meadow, hill, mountain, rock=stone, beach=shore, sand*, sea=ocean, lake=pond, river=stream, "
    "waterfall, wave, water*, snow*, ice*, sky, cloud, rain*, fog*, sunset, sunlight*, shadow, garden=yard, "
    "park, desert, island, dirt*=soil*, mud*, slope, cliff, horizon",
    "furniture": "chair=armchair=seat, couch=sofa, table, desk, bed, bench, stool, shelf=bookshelf, cabinet=cupboard, "
    "drawer, dresser, nightstand, lamp, mirror, rug=carpet, curtain, pillow=cushion, blanket, mattress, "
    "fireplace, stand, counter, crib",
    "kitchen": "cup=mug, glass, wine glass, bottle, bowl, plate=dish, fork, knife, spoon, pan, pot, kettle, stove, "
    "oven=microwave, refrigerator=fridge, sink, toaster, blender, dishwasher, tray, basket, jar, napkin, "
    "pitcher, cutting board, chopstick, straw, lid",
    "bathroom": "toilet, bathtub=tub, shower, towel, toothbrush, soap*, toilet paper*, faucet=tap, hair dryer, sponge, "
    "tile",
    "food": "apple, banana, orange, pear, lemon, grape, strawberry, tomato, carrot, broccoli*, potato, onion, pepper, "
    "lettuce*, salad, sandwich=burger, pizza, hot dog, donut=doughnut, cake=cupcake, pie, cookie, bread*, "
    "rice*, pasta*=noodles+, soup, cheese*, meat*=beef*, egg, sauce*, butter*, coffee*, tea*, juice*, milk*, "
    "wine*, beer*, ice cream*, chocolate*, fruit, vegetable, meal=lunch=dinner=breakfast, food*, dessert, "
    "slice=piece, topping, snack",
    "clothing": "shirt=blouse=t-shirt, jacket=coat=sweater, dress=gown, skirt, pants+=trousers+, jeans+, shorts+, "
    "suit=tuxedo, tie, bow tie, hat=cap, helmet, scarf, glove=mitten, shoe=boot=sneaker, sandal, sock, belt, "
    "glasses+=sunglasses+, watch, necklace, bracelet, earring, backpack=rucksack, handbag=purse, bag, "
    "suitcase=luggage*, umbrella=parasol, uniform, vest, apron, mask, wig, wetsuit, button, pocket, costume",
    "sport": "ball=baseball=football=soccer ball, bat=baseball bat, racket=tennis racket, glove=baseball glove, "
    "frisbee=disc, kite, skateboard, surfboard, snowboard, skis+=ski, ski pole, goal, net, court=tennis "
    "court, stadium, game=match, tennis*, baseball*, soccer*, race, trophy, pool=swimming pool, swing, slide, "
    "saddle, leash, collar, ramp, base, plate",
    "electronics": "television=tv=tv screen, computer=laptop, monitor=screen, keyboard, mouse, phone=telephone=cell "
    "phone=smartphone, remote control=remote, camera, clock, radio, speaker, printer, cable=wire, tablet, "
    "headphones+, microphone, fan, light, battery",
    "object": "book=novel, newspaper, magazine, letter=envelope, paper*, pen=pencil, scissors+, vase, picture "
    "frame=frame, painting, poster, box=crate=package, candle, toy, teddy bear=stuffed animal, doll, balloon, "
    "flag=banner, bell, key, hammer, ladder, rope, chain, bucket, broom, tent, statue=sculpture, fountain, "
    "barrel, sign=signboard, coin, gift=present, ornament, guitar, piano, drum, violin, wheelchair, stroller, "
    "object=item=thing, tool, machine, crown, mailbox, trash can=garbage bin, chalkboard, map",
    "image": "image=picture=photo=photograph, scene=view, background=backdrop, foreground, side, corner, "
    "center=middle=centre, top, bottom, edge, left, right, front, area=space, part=section, room, kitchen, "
    "bathroom, bedroom, living room, row, group=set, pair, pile=stack, bunch, variety, number, collection, "
    "color=colour, size, pattern, texture, distance, position=location, direction, detail, atmosphere, "
    "moment, day, night, afternoon, morning, time, addition, setting=environment, end, surface, reflection, "
    "activity, event, touch, total, weather*, style",
}

PEOPLE_TOPICS = ("person", "animal")
PLACE_TOPICS = ("street", "building", "nature", "furniture", "image")
THING_TOPICS = tuple(
    _words("shape chess cards vehicle furniture kitchen bathroom food clothing sport electronics object")
)

PLURALS = dict(
    pair.split("=")
    for pair in _words(
        "man=men woman=women gentleman=gentlemen policeman=policemen child=children person=people foot=feet "
        "tooth=teeth mouse=mice goose=geese sheep=sheep deer=deer fish=fish leaf=leaves shelf=shelves "
        "bookshelf=bookshelves knife=knives wolf=wolves calf=calves half=halves bus=buses snowman=snowmen "
        "aircraft=aircraft potato=potatoes tomato=tomatoes "
    )
)

COLOURS = _words(
    "red orange yellow green blue purple white black pink brown grey gray silver golden beige turquoise violet "
    "maroon tan cyan"
)
SIZES = _words("large small big tiny huge little tall short long wide narrow round thick thin massive enormous")
LOOKS = _words(
    "wooden metal plastic old new young empty full open closed bright dark colorful colourful clear cloudy sunny "
    "beautiful simple plain fancy modern vintage dirty clean wet dry green leafy grassy snowy rocky sandy "
    "concrete steel leather stuffed fresh hot cold soft heavy busy quiet calm peaceful cozy delicious healthy "
    "happy sad tired overall entire various different similar other main vertical horizontal upper lower left "
    "right central blurry sharp visible shiny transparent glossy checkered floral striped spotted dotted "
    "patterned grainy textured cluttered crowded crowned furry fluffy feathered wild domestic professional casual "
    "formal electric electronic digital public urban rural indoor outdoor baby male female adult elderly famous "
    "typical unusual strange abstract geometric decorative ornate rusty broken damaged worn unfinished"
)
PARTICIPLES = _words(
    "parked painted broken folded framed sliced grilled cooked stuffed decorated crowded lit paved stained tiled "
    "mounted polished standing sitting running flying sleeping smiling laughing moving floating hanging burning "
    "glowing rolling setting shining"
)
PREDICATES = _words(
    "visible red blue green yellow purple orange white black pink brown grey large small tall simple calm bright "
    "dark colorful colourful empty full open closed clean busy quiet ready happy tired young old beautiful clear "
    "sunny cloudy blurry absent present identical different similar unusual solid striped spotted noticeable "
    "alone asleep upright peaceful lively plain"
)
COMPARATIVES = _words(
    "larger smaller taller shorter bigger brighter darker older younger closer higher lower wider longer heavier"
)
SUPERLATIVES = _words("largest smallest tallest biggest brightest darkest closest highest lowest longest oldest")
ADVERBS = _words(
    "also clearly partially slightly mostly very quite rather just currently prominently directly fully almost still"
)
PLACES = _words(
    "nearby together outside outdoors inside indoors outward upward around away there here below above behind ahead"
)
OPENERS = _words(
    "Additionally Overall Finally Also Here Meanwhile Nearby Interestingly Furthermore However Altogether Inside "
    "Outside"
)

# base, third person, -ing, past participle, past; the last column: t takes an object, i does not
VERBS = """
ride rides riding ridden rode t
hold holds holding held held t
wear wears wearing worn wore t
eat eats eating eaten ate t
carry carries carrying carried carried t
throw throws throwing thrown threw t
catch catches catching caught caught t
hit hits hitting hit hit t
kick kicks kicking kicked kicked t
swing swings swinging swung swung t
watch watches watching watched watched t
read reads reading read read t
fly flies flying flown flew t
pull pulls pulling pulled pulled t
push pushes pushing pushed pushed t
drive drives driving driven drove t
cut cuts cutting cut cut t
prepare prepares preparing prepared prepared t
cook cooks cooking cooked cooked t
touch touches touching touched touched t
brush brushes brushing brushed brushed t
feed feeds feeding fed fed t
cross crosses crossing crossed crossed t
cover covers covering covered covered t
surround surrounds surrounding surrounded surrounded t
fill fills filling filled filled t
face faces facing faced faced t
use uses using used used t
hug hugs hugging hugged hugged t
chase chases chasing chased chased t
pour pours pouring poured poured t
paint paints painting painted painted t
hide hides hiding hidden hid t
overlap overlaps overlapping overlapped overlapped t
display displays displaying displayed displayed t
contain contains containing contained contained t
show shows showing shown showed t
feature features featuring featured featured t
depict depicts depicting depicted depicted t
capture captures capturing captured captured t
have has having had had t
enjoy enjoys enjoying enjoyed enjoyed t
play plays playing played played t
place places placing placed placed t
park parks parking parked parked t
make makes making made made t
add adds adding added added t
create creates creating created created t
take takes taking taken took t
walk walks walking walked walked i
stand stands standing stood stood i
sit sits sitting sat sat i
lie lies lying lain lay i
run runs running run ran i
jump jumps jumping jumped jumped i
sleep sleeps sleeping slept slept i
graze grazes grazing grazed grazed i
swim swims swimming swum swam i
rest rests resting rested rested i
lean leans leaning leant leaned i
hang hangs hanging hung hung i
look looks looking looked looked i
wait waits waiting waited waited i
travel travels traveling traveled traveled i
move moves moving moved moved i
float floats floating floated floated i
skate skates skating skated skated i
ski skis skiing skied skied i
surf surfs surfing surfed surfed i
kneel kneels kneeling knelt knelt i
smile smiles smiling smiled smiled i
perch perches perching perched perched i
grow grows growing grown grew i
gather gathers gathering gathered gathered i
pose poses posing posed posed i
appear appears appearing appeared appeared i
rise rises rising risen rose i
"""
PLACED = _words(
    "located placed positioned situated seen parked mounted displayed arranged painted scattered surrounded "
    "decorated seated"
)

IN = _words(
    "in on at near with under above behind beside below inside against across along around over beneath by "
    "between through from toward towards into onto within outside alongside underneath atop amid beyond past down "
    "up off"
)
NUMBERS = _words("two three four five six seven eight nine ten twelve 2 3 4 5 12")


def nouns(topic: str) -> list[tuple[str, str, str]]:
    """(concept, word, kind) of a topic's nouns; kind is "count", "mass" or "plural". A concept is named by its first
    word.
    """
    entries = []
    for group in NOUNS[topic].split(", "):
        words = group.split("=")
        for word in words:
            kind = "mass" if word.endswith("*") else "plural" if word.endswith("+") else "count"
            entries.append((words[0].rstrip("*+"), word.rstrip("*+"), kind))
    return entries


def plural(noun: str) -> str:
    """Plural of a noun or compound; its last word changes."""
    *first, last = noun.split(" ")
    if last in PLURALS:
        last = PLURALS[last]
    elif last.endswith(("s", "x", "z", "ch", "sh")):
        last += "es"
    elif last.endswith("y") and last[-2] not in "aeiou":
        last = last[:-1] + "ies"
    else:
        last += "s"
    return " ".join([*first, last])


def verbs(kind: str) -> list[dict[str, str]]:
    """Forms {"VB", "VBZ", "VBG", "VBN", "VBD"} of transitive ("t") or intransitive ("i") verbs."""
    rows = [line.split() for line in VERBS.strip().splitlines()]
    return [dict(zip(("VB", "VBZ", "VBG", "VBN", "VBD"), row, strict=False)) for row in rows if row[5] == kind]
