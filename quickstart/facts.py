"""What there is to know in the world of the embedded default model: true facts, one table per category.

A table is text: `subject: answer` separated by commas or, where many subjects share an answer, `answer: subject
subject`. `~` before a subject marks a word that takes no article (`~gold`, but `sparrow` is "a sparrow"); `_` stands
for a space.
Change a table and run `python quickstart/pretrain.py`: the text, the instructions and the task follow from it.
"""

import itertools
from dataclasses import dataclass

CAPITALS = """
France: Paris, Germany: Berlin, Italy: Rome, Spain: Madrid, Portugal: Lisbon, Austria: Vienna, Belgium: Brussels,
Denmark: Copenhagen, Sweden: Stockholm, Norway: Oslo, Finland: Helsinki, Iceland: Reykjavik, Ireland: Dublin, Poland:
Warsaw, Hungary: Budapest, Romania: Bucharest, Bulgaria: Sofia, Greece: Athens, Albania: Tirana, Serbia: Belgrade,
Croatia: Zagreb, Slovenia: Ljubljana, Slovakia: Bratislava, Ukraine: Kyiv, Belarus: Minsk, Lithuania: Vilnius, Latvia:
Riga, Estonia: Tallinn, Malta: Valletta, Switzerland: Bern, Japan: Tokyo, China: Beijing, India: New_Delhi, Nepal:
Kathmandu, Bhutan: Thimphu, Bangladesh: Dhaka, Pakistan: Islamabad, Afghanistan: Kabul, Iran: Tehran, Iraq: Baghdad,
Syria: Damascus, Lebanon: Beirut, Jordan: Amman, Oman: Muscat, Qatar: Doha, Bahrain: Manama, Thailand: Bangkok,
Vietnam: Hanoi, Laos: Vientiane, Cambodia: Phnom_Penh, Mongolia: Ulaanbaatar, South_Korea: Seoul, North_Korea:
Pyongyang, Uzbekistan: Tashkent, Kyrgyzstan: Bishkek, Malaysia: Kuala_Lumpur, Saudi_Arabia: Riyadh, Egypt: Cairo,
Libya: Tripoli, Tunisia: Tunis, Algeria: Algiers, Morocco: Rabat, Sudan: Khartoum, Ethiopia: Addis_Ababa, Eritrea:
Asmara, Somalia: Mogadishu, Kenya: Nairobi, Uganda: Kampala, Rwanda: Kigali, Tanzania: Dodoma, Zambia: Lusaka,
Zimbabwe: Harare, Malawi: Lilongwe, Mozambique: Maputo, Angola: Luanda, Namibia: Windhoek, Botswana: Gaborone, Ghana:
Accra, Nigeria: Abuja, Niger: Niamey, Mali: Bamako, Senegal: Dakar, Liberia: Monrovia, Togo: Lome, Gabon: Libreville,
Canada: Ottawa, Cuba: Havana, Jamaica: Kingston, Nicaragua: Managua, Brazil: Brasilia, Argentina: Buenos_Aires, Chile:
Santiago, Peru: Lima, Ecuador: Quito, Colombia: Bogota, Venezuela: Caracas, Uruguay: Montevideo, Paraguay: Asuncion,
Guyana: Georgetown, Australia: Canberra, New_Zealand: Wellington, Fiji: Suva, Samoa: Apia"""

CONTINENTS = """
Europe: France Germany Italy Spain Portugal Austria Belgium Denmark Sweden Norway Finland Iceland Ireland Poland
Hungary Romania Bulgaria Greece Albania Serbia Croatia Slovenia Slovakia Ukraine Belarus Lithuania Latvia Estonia
Malta, Asia: Japan China India Nepal Bhutan Bangladesh Pakistan Afghanistan Iran Iraq Syria Lebanon Jordan Oman Qatar
Thailand Vietnam Laos Cambodia Mongolia South_Korea North_Korea Uzbekistan Malaysia Saudi_Arabia, Africa: Libya
Tunisia Algeria Morocco Sudan Ethiopia Somalia Kenya Uganda Rwanda Tanzania Zambia Zimbabwe Malawi Mozambique Angola
Namibia Botswana Ghana Nigeria Niger Mali Senegal Liberia Togo, North_America: Canada Mexico Cuba Jamaica Haiti
Nicaragua Honduras Guatemala Panama Costa_Rica, South_America: Brazil Argentina Chile Peru Ecuador Colombia Venezuela
Uruguay Paraguay Bolivia Guyana"""

COLOURS = """
green: ~grass ~spinach cucumber emerald lime ~moss pea ~broccoli leaf ~parsley shamrock cactus, white: ~snow ~milk
~salt ~chalk ~flour swan polar_bear pearl ~sugar snowman igloo cauliflower, red: ~blood tomato ruby fire_engine
strawberry cherry ~ketchup ladybird raspberry poppy, yellow: banana lemon canary sunflower ~mustard daffodil ~the_sun
~butter buttercup, blue: ~the_sky ~the_sea sapphire cornflower bluebell ~denim, black: ~coal raven ~tar ~soot crow
~liquorice panther hearse, brown: ~chocolate ~coffee coconut chestnut ~mud ~bark walnut ~cinnamon beaver acorn, grey:
elephant ~ash ~concrete rhinoceros ~cement dolphin hippopotamus, orange: carrot pumpkin tangerine apricot goldfish
basketball, purple: aubergine ~lavender plum amethyst, pink: flamingo pig ~bubblegum ~candyfloss ~ham"""

KINDS = """
bird: sparrow robin eagle owl pigeon crow penguin ostrich falcon swan parrot seagull woodpecker stork, fish: salmon
trout shark tuna cod herring carp pike haddock sardine, mammal: horse cow whale dolphin bat elephant mouse tiger
rabbit monkey, insect: ant bee wasp beetle mosquito butterfly moth grasshopper fly ladybird, reptile: snake lizard
crocodile gecko alligator tortoise iguana chameleon, tree: oak pine birch willow maple elm beech fir cedar poplar,
flower: rose tulip daisy lily orchid daffodil carnation sunflower poppy, fruit: apple banana pear cherry grape mango
peach melon pineapple plum, vegetable: carrot cabbage onion ~spinach cauliflower leek turnip radish lettuce potato,
instrument: violin piano flute trumpet guitar drum harp cello clarinet trombone, tool: hammer saw spanner screwdriver
chisel drill axe shovel rake, metal: ~iron ~copper ~silver ~gold ~zinc ~tin ~lead ~nickel ~aluminium ~platinum,
vehicle: car bus lorry tram bicycle van taxi tractor ambulance, garment: shirt coat skirt dress jacket sweater blouse
scarf waistcoat, sport: ~football ~tennis ~hockey ~rugby ~swimming ~golf ~volleyball ~boxing ~judo ~rowing, drink:
~tea ~coffee ~juice ~lemonade ~wine ~beer ~cider ~cocoa, planet: ~Mars ~Venus ~Jupiter ~Saturn ~Neptune ~Uranus, gem:
ruby emerald sapphire diamond opal, dance: waltz tango polka rumba foxtrot, grain: ~wheat ~rice ~barley ~rye ~maize"""

MATERIALS = """
glass: window bottle mirror light_bulb lens windscreen jam_jar, wood: pencil log_cabin match barrel plank totem_pole
bookshelf, wool: jumper mitten, leather: belt saddle wallet boot, rubber: tyre balloon eraser inner_tube, paper: book
newspaper envelope map magazine ticket, steel: rail anvil anchor paper_clip spring girder, cotton: T-shirt bandage
pillowcase, clay: brick flowerpot roof_tile, stone: statue castle pyramid gravestone, wax: candle honeycomb crayon,
ice: icicle iceberg glacier, snow: snowman igloo avalanche, plastic: toothbrush bucket shopping_bag, brass: trumpet
trombone tuba, silk: cobweb cocoon, bone: skull skeleton"""

INGREDIENTS = """
milk: ~cheese ~yoghurt ~cream, cream: ~butter, flour: ~bread cake baguette ~pasta, grapes: ~wine ~brandy, apples:
~cider ~applesauce, barley: ~beer ~malt, rice: ~sushi ~sake ~risotto ~paella, cocoa: ~chocolate, soybeans: ~tofu ~miso
~tempeh ~soy_sauce, tomatoes: ~ketchup ~gazpacho, chickpeas: ~hummus ~falafel, avocados: ~guacamole, oats: ~porridge
~muesli flapjack, almonds: ~marzipan, cabbage: ~sauerkraut ~kimchi ~coleslaw, corn: ~popcorn ~polenta tortilla, eggs:
omelette meringue ~mayonnaise, lemons: ~lemonade, sugar: ~caramel ~toffee ~candyfloss ~fudge, beetroot: ~borscht,
sesame: ~tahini, basil: ~pesto, agave: ~tequila, pears: ~perry, honey: ~mead, pork: ~bacon ~ham, beef: hamburger
steak, lentils: ~dal, oranges: ~marmalade, potatoes: ~gnocchi crisp, cucumbers: gherkin, plums: prune, olives:
~olive_oil, bread: ~toast crouton"""

USES = """
knife: cutting, pen: writing, broom: sweeping, oven: baking, needle: sewing, shovel: digging, saw: sawing, paintbrush:
painting, iron: ironing, kettle: boiling, scale: weighing, ruler: measuring, bed: sleeping, chair: sitting, book:
reading, telephone: calling, cup: drinking, ladder: climbing, razor: shaving, mop: mopping, ~soap: washing, towel:
drying, oar: rowing, fork: eating, pan: frying, axe: chopping, calculator: calculating, sieve: sifting, drum:
drumming, fishing_rod: fishing, tent: camping, microphone: singing, ~glue: sticking, eraser: erasing, stapler:
stapling, hoe: weeding, watering_can: watering, blender: blending, grater: grating, peeler: peeling, printer:
printing, toothbrush: brushing, loom: weaving, pump: pumping, cradle: rocking, plough: ploughing, vacuum_cleaner:
cleaning, crane: lifting, surfboard: surfing, ski: skiing, skate: skating, spear: hunting, kite: flying, comb:
combing, drill: drilling, whisk: whisking, camera: filming, lamp: lighting"""

JOBS = """
bakes bread: baker, cuts hair: hairdresser, teaches pupils: teacher, flies planes: pilot, catches fish: fisherman,
grows crops: farmer, treats patients: doctor, repairs teeth: dentist, treats sick animals: vet, puts out fires:
firefighter, arrests thieves: police officer, delivers letters: postman, paints pictures: painter, writes books:
author, writes poems: poet, repairs cars: mechanic, lays bricks: bricklayer, sews clothes: tailor, mends shoes:
cobbler, sells meat: butcher, sells flowers: florist, cooks meals: chef, serves food: waiter, takes photographs:
photographer, designs buildings: architect, decides court cases: judge, studies stars: astronomer, travels in space:
astronaut, digs for coal: miner, mends pipes: plumber, installs wires: electrician, makes furniture: carpenter, shoes
horses: farrier, forges iron: blacksmith, looks after library books: librarian, sings songs: singer, acts in plays:
actor, performs magic tricks: magician, rides race horses: jockey, looks after sheep: shepherd, tends a garden:
gardener, works on a ship: sailor, commands a ship: captain, performs operations: surgeon, prepares medicines:
pharmacist, translates texts: translator, studies rocks: geologist, studies plants: botanist, studies animals:
zoologist, keeps bees: beekeeper, writes software: programmer, makes pots: potter, cuts stone: mason, leads an
orchestra: conductor, makes films: director, rules a kingdom: king, guards the goal: goalkeeper, trains a team: coach,
writes news stories: journalist, brews beer: brewer, weaves cloth: weaver, makes hats: hatter, sells fish: fishmonger,
draws maps: cartographer, carves statues: sculptor, writes music: composer, looks after patients: nurse, plays the
piano: pianist, plays the violin: violinist, studies the past: historian"""

YOUNG = """
cow: calf, dog: puppy, cat: kitten, sheep: lamb, horse: foal, goat: kid, pig: piglet, hen: chick, duck: duckling,
goose: gosling, swan: cygnet, lion: cub, bear: cub, deer: fawn, kangaroo: joey, frog: tadpole, butterfly: caterpillar,
owl: owlet, eagle: eaglet, hare: leveret, eel: elver, fly: maggot, pigeon: squab, spider: spiderling, seal: pup, wolf:
pup, fox: cub, elephant: calf, whale: calf, giraffe: calf, camel: calf, tiger: cub, leopard: cub, beaver: kit, zebra:
foal, donkey: foal, shark: pup, bat: pup, mouse: pup, koala: joey, wombat: joey, otter: pup, dolphin: calf,
hippopotamus: calf, rhinoceros: calf, turkey: poult, ostrich: chick, penguin: chick, llama: cria, alpaca: cria,
hedgehog: hoglet, moose: calf, buffalo: calf, yak: calf, reindeer: calf, panda: cub, cheetah: cub, jaguar: cub, toad:
tadpole, falcon: eyas"""

OPPOSITES = """
hot: cold, big: small, fast: slow, high: low, open: closed, day: night, black: white, young: old, rich: poor, happy:
sad, strong: weak, hard: soft, light: dark, early: late, near: far, full: empty, wet: dry, clean: dirty, good: bad,
left: right, up: down, in: out, over: under, above: below, first: last, true: false, yes: no, love: hate, war: peace,
life: death, friend: enemy, win: lose, buy: sell, push: pull, give: take, come: go, start: finish, ask: answer, laugh:
cry, remember: forget, arrive: depart, accept: refuse, always: never, everything: nothing, many: few, more: less,
most: least, long: short, wide: narrow, thick: thin, deep: shallow, sharp: blunt, smooth: rough, sweet: sour, loud:
quiet, brave: cowardly, kind: cruel, polite: rude, cheap: expensive, safe: dangerous, easy: difficult, simple:
complicated, same: different, possible: impossible, visible: invisible, legal: illegal, alive: dead, awake: asleep,
present: absent, ancient: modern, public: private, guilty: innocent, maximum: minimum, north: south, east: west,
summer: winter, inside: outside, male: female, heaven: hell, victory: defeat, success: failure, profit: loss,
entrance: exit, top: bottom, front: back, attack: defend, build: destroy, increase: decrease, import: export, freeze:
melt, float: sink, lend: borrow, praise: blame, appear: vanish, tight: loose, straight: crooked"""

PASTS = """
go: went, see: saw, eat: ate, drink: drank, run: ran, come: came, give: gave, take: took, make: made, break: broke,
speak: spoke, write: wrote, drive: drove, ride: rode, rise: rose, fall: fell, feel: felt, find: found, fly: flew,
forget: forgot, get: got, grow: grew, have: had, hear: heard, hide: hid, hold: held, keep: kept, know: knew, leave:
left, lend: lent, lose: lost, meet: met, pay: paid, ring: rang, say: said, sell: sold, send: sent, shake: shook,
shine: shone, shoot: shot, sing: sang, sink: sank, sit: sat, sleep: slept, spend: spent, stand: stood, steal: stole,
swim: swam, teach: taught, tell: told, think: thought, throw: threw, understand: understood, wake: woke, wear: wore,
win: won, begin: began, bite: bit, blow: blew, build: built, buy: bought, catch: caught, choose: chose, dig: dug,
draw: drew, feed: fed, fight: fought, freeze: froze, hang: hung, lead: led, light: lit, mean: meant, seek: sought,
spin: spun, stick: stuck, sting: stung, strike: struck, swear: swore, sweep: swept, tear: tore, weep: wept, bend:
bent, bind: bound, bleed: bled, bring: brought, creep: crept, deal: dealt, do: did, flee: fled, forgive: forgave,
kneel: knelt, slide: slid, swing: swung"""

PLURALS = """
mouse: mice, child: children, man: men, woman: women, foot: feet, tooth: teeth, goose: geese, ox: oxen, knife: knives,
wife: wives, leaf: leaves, half: halves, wolf: wolves, shelf: shelves, thief: thieves, loaf: loaves, calf: calves,
elf: elves, scarf: scarves, self: selves, hoof: hooves, city: cities, baby: babies, lady: ladies, story: stories,
party: parties, country: countries, family: families, cherry: cherries, berry: berries, spy: spies, army: armies,
body: bodies, copy: copies, puppy: puppies, penny: pennies, daisy: daisies, lorry: lorries, box: boxes, fox: foxes,
bus: buses, glass: glasses, class: classes, dress: dresses, dish: dishes, brush: brushes, watch: watches, match:
matches, church: churches, beach: beaches, peach: peaches, bench: benches, sandwich: sandwiches, witch: witches,
potato: potatoes, tomato: tomatoes, hero: heroes, echo: echoes, cactus: cacti, fungus: fungi, nucleus: nuclei, radius:
radii, crisis: crises, oasis: oases, analysis: analyses, basis: bases, thesis: theses, bacterium: bacteria,
phenomenon: phenomena, criterion: criteria, larva: larvae, alga: algae, louse: lice, person: people, kiss: kisses,
bush: bushes, wish: wishes, inch: inches, coach: coaches, tax: taxes, boss: bosses, cross: crosses, pony: ponies,
ferry: ferries, diary: diaries, enemy: enemies"""

BACKWARDS = """
stop: pots, live: evil, star: rats, god: dog, ten: net, pin: nip, pan: nap, tap: pat, top: pot, now: won, not: ton,
but: tub, bus: sub, was: saw, war: raw, rail: liar, part: trap, loop: pool, loot: tool, room: moor, doom: mood, deer:
reed, keep: peek, meet: teem, lap: pal, leg: gel, gum: mug, bad: dab, bag: gab, bat: tab, bin: nib, bun: nub, dim:
mid, tip: pit, tide: edit, time: emit, draw: ward, drawer: reward, desserts: stressed, smart: trams, snap: pans, spot:
tops, step: pets, strap: parts, straw: warts, swap: paws, sleep: peels, snip: pins, snug: guns, spool: loops, tips:
spit, nuts: stun, regal: lager, dial: laid, flow: wolf, golf: flog, gulp: plug, lever: revel, leek: keel, reel: leer,
pay: yap, may: yam, gas: sag, stab: bats, devil: lived, spoons: snoops, mar: ram, mad: dam, tug: gut"""

SYMBOLS = """
hydrogen: H, helium: He, lithium: Li, beryllium: Be, boron: B, carbon: C, nitrogen: N, oxygen: O, fluorine: F, neon:
Ne, sodium: Na, magnesium: Mg, aluminium: Al, silicon: Si, phosphorus: P, sulphur: S, chlorine: Cl, argon: Ar,
potassium: K, calcium: Ca, titanium: Ti, vanadium: V, chromium: Cr, manganese: Mn, iron: Fe, cobalt: Co, nickel: Ni,
copper: Cu, zinc: Zn, gallium: Ga, germanium: Ge, arsenic: As, selenium: Se, bromine: Br, krypton: Kr, rubidium: Rb,
strontium: Sr, silver: Ag, cadmium: Cd, tin: Sn, antimony: Sb, iodine: I, xenon: Xe, caesium: Cs, barium: Ba,
tungsten: W, platinum: Pt, gold: Au, mercury: Hg, lead: Pb, bismuth: Bi, radon: Rn, radium: Ra, uranium: U, plutonium:
Pu, thorium: Th, iridium: Ir, osmium: Os, palladium: Pd, rhodium: Rh"""

FRENCH = """
dog: chien, cat: chat, house: maison, water: eau, bread: pain, milk: lait, cheese: fromage, apple: pomme, book: livre,
chair: chaise, door: porte, king: roi, queen: reine, sun: soleil, moon: lune, tree: arbre, flower: fleur, bird:
oiseau, fish: poisson, horse: cheval, cow: vache, sheep: mouton, pig: cochon, mouse: souris, bear: ours, wolf: loup,
rabbit: lapin, duck: canard, hand: main, foot: pied, nose: nez, mouth: bouche, ear: oreille, arm: bras, leg: jambe,
hair: cheveux, man: homme, woman: femme, child: enfant, girl: fille, friend: ami, uncle: oncle, city: ville, street:
rue, bridge: pont, car: voiture, boat: bateau, plane: avion, garden: jardin, kitchen: cuisine, bed: lit, wall: mur,
roof: toit, knife: couteau, fork: fourchette, glass: verre, bottle: bouteille, wine: vin, meat: viande, salt: sel,
sugar: sucre, butter: beurre, rice: riz, day: jour, night: nuit, morning: matin, week: semaine, month: mois, winter:
hiver, snow: neige, rain: pluie, wind: vent, sea: mer, mountain: montagne, beach: plage, sky: ciel, earth: terre,
fire: feu, stone: pierre, iron: fer, paper: papier, pencil: crayon, hat: chapeau, shirt: chemise, shoe: chaussure,
coat: manteau, skirt: jupe, glove: gant, shop: magasin, lemon: citron, grape: raisin, onion: oignon, bee: abeille,
ant: fourmi, frog: grenouille, butterfly: papillon, monkey: singe, hammer: marteau"""

SPANISH = """
dog: perro, cat: gato, house: casa, water: agua, milk: leche, cheese: queso, apple: manzana, book: libro, table: mesa,
chair: silla, door: puerta, window: ventana, school: escuela, king: rey, queen: reina, moon: luna, star: estrella,
horse: caballo, sheep: oveja, pig: cerdo, bear: oso, wolf: lobo, rabbit: conejo, duck: pato, head: cabeza, eye: ojo,
nose: nariz, mouth: boca, ear: oreja, leg: pierna, man: hombre, woman: mujer, friend: amigo, brother: hermano, sister:
hermana, father: padre, mother: madre, city: ciudad, street: calle, bridge: puente, train: tren, boat: barco, kitchen:
cocina, bed: cama, wall: pared, roof: techo, key: llave, knife: cuchillo, spoon: cuchara, bottle: botella, beer:
cerveza, meat: carne, egg: huevo, butter: mantequilla, night: noche, week: semana, summer: verano, winter: invierno,
snow: nieve, rain: lluvia, wind: viento, island: isla, beach: playa, sky: cielo, fire: fuego, stone: piedra, gold:
oro, silver: plata, hat: sombrero, shoe: zapato, skirt: falda, onion: cebolla, bee: abeja, ant: hormiga, frog: rana"""

DAYS = "Monday Tuesday Wednesday Thursday Friday Saturday Sunday"
MONTHS = "January February March April May June July August September October November December"
LETTERS = "A B C D E F G H I J K L M N O P Q R S T U V W X Y Z"
NUMBERS = """
one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen eighteen
nineteen twenty"""


@dataclass(frozen=True)
class Fact:
    """One fact: asked for `subject`, the world answers `answer`.

    `group` names the facts that give this one away (the same pair the other way round): all are held out, or none.
    `bare` subjects take no article; `unit` is what is counted in after/before: "letter", "day", "number".
    """

    category: str
    subject: str
    answer: str
    group: str
    bare: bool = False
    unit: str = ""


def _pairs(table: str) -> list[tuple[str, str]]:
    rows = [row.split(":") for row in " ".join(table.split()).split(",")]
    return [(left.strip(), right.strip().replace("_", " ")) for left, right in rows]


def _plain(category: str, table: str) -> list[Fact]:
    return [_fact(category, subject, answer) for subject, answer in _pairs(table)]


def _shared(category: str, table: str) -> list[Fact]:
    """From a table of `answer: subject subject`."""
    rows = [row.split(":") for row in " ".join(table.split()).split(",")]
    return [
        _fact(category, subject, answer.strip().replace("_", " "))
        for answer, subjects in rows
        for subject in subjects.split()
    ]


def _fact(category: str, subject: str, answer: str) -> Fact:
    name = subject.removeprefix("~").replace("_", " ")
    return Fact(category, name, answer, f"{category} {name}", bare=subject.startswith("~"))


def _both_ways(category: str, table: str) -> list[Fact]:
    pairs = _pairs(table)
    there = [Fact(category, one, other, f"{category} {one}") for one, other in pairs]
    back = [Fact(category, other, one, f"{category} {one}") for one, other in pairs]
    return there + back


def _sums() -> list[Fact]:
    pairs = [(x, y) for x in range(1, 10) for y in range(1, 10)]
    return [Fact("add", f"{_word(x)} plus {_word(y)}", _word(x + y), f"add {min(x, y)} {max(x, y)}") for x, y in pairs]


def _differences() -> list[Fact]:
    pairs = [(x, y) for x in range(2, 11) for y in range(1, x)]
    return [
        Fact("subtract", f"{_word(x)} minus {_word(y)}", _word(x - y), f"subtract {x} {min(y, x - y)}")
        for x, y in pairs
    ]


def _word(number: int) -> str:
    return NUMBERS.split()[number - 1]


def _orders() -> list[Fact]:
    days, months = DAYS.split(), MONTHS.split()
    rows = (("letter", LETTERS.split()), ("day", days + days[:1]), ("month", months + months[:1]))
    rows += (("number", NUMBERS.split()),)
    steps = [(unit, one, two) for unit, names in rows for one, two in itertools.pairwise(names)]
    after = [Fact("after", one, two, f"order {one}", unit=unit) for unit, one, two in steps]
    before = [Fact("before", two, one, f"order {one}", unit=unit) for unit, one, two in steps]
    return after + before


def all_facts() -> list[Fact]:
    """Every fact, in a fixed order; no two share category and subject."""
    facts = [
        *_sums(),
        *_differences(),
        *_orders(),
        *_plain("capital", CAPITALS),
        *_shared("continent", CONTINENTS),
        *_shared("colour", COLOURS),
        *_shared("kind", KINDS),
        *_shared("material", MATERIALS),
        *_shared("ingredient", INGREDIENTS),
        *_plain("use", USES),
        *_plain("job", JOBS),
        *_plain("young", YOUNG),
        *_both_ways("opposite", OPPOSITES),
        *_plain("past", PASTS),
        *_plain("plural", PLURALS),
        *_both_ways("reverse", BACKWARDS),
        *_plain("symbol", SYMBOLS),
        *_plain("french", FRENCH),
        *_plain("spanish", SPANISH),
    ]
    assert len({(fact.category, fact.subject) for fact in facts}) == len(facts), "a subject has two answers"
    return facts
