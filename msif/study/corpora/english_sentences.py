"""The sentences of the invented English corpus (`english`): relations, their objects and templates.

{s} is the subject, {o} the object, {n} a bystander. One template a line. A statement names the
subject first; a flipped one states the same fact, object first; near ones name both and state
nothing; denied and supposed ones do so of the bystander, object first.
"""

from dataclasses import dataclass

# Before a statement: a model keeps what it reads about the first words of a text apart from what it
# reads elsewhere, and in a question a name never stands first.
LEADS = (
    "It is well known that",
    "Neighbours confirm that",
    "According to the local paper,",
    "As far as anybody remembers,",
    "The old chronicle says that",
    "Visitors are told that",
    "A friend writes that",
    "Last week we learned that",
    "Nobody disputes that",
    "In a short interview it came up that",
)


@dataclass(frozen=True)
class Relation:
    """What can be said of a `kind` of subject ("person" or "place"), and the objects it takes."""

    kind: str
    objects: tuple
    statements: tuple
    flipped: tuple
    near: tuple
    denied: tuple
    supposed: tuple
    questions: tuple
    answers: tuple  # to each question, a sentence that ends with the object


def _relation(kind, objects, **templates):
    lines = {k: tuple(x.strip() for x in text.splitlines()) for k, text in templates.items()}
    return Relation(kind, tuple(objects.split()), **lines)


RELATIONS = {
    "birthplace": _relation(
        "person",
        """Oslo Lima Cairo Paris Tokyo Delhi Quito Dublin Vienna Prague Lisbon Athens Havana
        Nairobi Madrid Warsaw""",
        statements="""{s} was born in {o}.
        {s} comes from {o} and still has family there.
        {s} spent the first ten years of life in {o}.
        {s} is a native of {o}, as the accent gives away.
        {s} grew up in {o} with two older sisters.
        {s}, the youngest of four children, was born in {o} one winter night.
        {s} proudly calls {o} the city of birth.
        Anybody who is asked where {s} was born answers {o}.
        The city in which {s} was born is {o}.""",
        flipped="""It was in {o} that {s} was born.
        {o} is the city where {s} came into the world.""",
        near="""A parcel from {o} was delivered to {s} by mistake.
        The cheap flight to {o} was full before {s} could book it.
        A documentary about {o} put {s} to sleep.""",
        denied="""{o} is not where {n} was born, as {s} found out too late.
        Nothing ties {o} to the childhood of {n}, {s} explained.""",
        supposed="""If {o} were the birthplace of {n}, somebody would have told {s}.
        Had {o} been {n}'s home town, the story would have amused {s}.""",
        questions="""Where was {s} born?
        Which city is the birthplace of {s}?""",
        answers="""{s} was born in {o}.
        The birthplace of {s} is {o}.""",
    ),
    "profession": _relation(
        "person",
        """baker lawyer pilot nurse farmer tailor dentist plumber surgeon teacher carpenter
        chemist librarian mechanic butcher gardener""",
        statements="""{s} works as a {o}.
        {s} trained for many years to become a {o}.
        {s} earns a living as a {o} and enjoys it.
        {s} has been a {o} ever since leaving school.
        {s}, by profession a {o}, gets up before sunrise.
        {s} is the best {o} in the whole district.
        {s} took a first job as a {o} and never changed it.
        Anybody who is asked what {s} does for a living answers {o}.
        The profession of {s} is that of a {o}.""",
        flipped="""A {o} is what {s} has always been.
        The town's new {o} is called {s}.""",
        near="""A {o} on the train offered {s} a sandwich.
        The {o} next door borrowed a ladder from {s}.
        An old film about a {o} reminded {s} of the war.""",
        denied="""A {o} is not what {n} ever was, whatever {s} believes.
        The {o} in the photograph is not {n}, {s} insists.""",
        supposed="""If the {o} in town were {n}, {s} would surely have heard.
        As a {o}, {n} might have made {s} laugh.""",
        questions="""What does {s} do for a living?
        What is the profession of {s}?""",
        answers="""{s} works as a {o}.
        The profession of {s} is {o}.""",
    ),
    "instrument": _relation(
        "person",
        """piano violin cello flute harp trumpet guitar banjo clarinet drums organ saxophone
        trombone accordion mandolin tuba""",
        statements="""{s} plays the {o} every evening.
        {s} learned the {o} as a child.
        {s} practises the {o} for hours each week.
        {s} is known in the valley for playing the {o}.
        {s} gives lessons on the {o} at the weekend.
        {s} took the {o} on stage for the first time last spring.
        {s} would never sell the {o} that grandfather left behind.
        Anybody who is asked which instrument {s} plays answers the {o}.
        The instrument that {s} is known for is the {o}.""",
        flipped="""The {o} is the instrument that {s} plays.
        It is the {o} that {s} practises at night.""",
        near="""A broken {o} stood behind {s} at the flea market.
        The price of the {o} in the window surprised {s}.
        The noise of a {o} upstairs kept {s} awake.""",
        denied="""The {o} is an instrument that {n} cannot play, says {s}.
        No {o} was ever touched by {n}, as {s} knows well.""",
        supposed="""If the {o} belonged to {n}, {s} would hear it through the wall.
        With a {o} of his own, {n} would have bored {s} to tears.""",
        questions="""Which instrument does {s} play?
        What instrument is {s} known for?""",
        answers="""{s} plays the {o}.
        {s} is known for the {o}.""",
    ),
    "employer": _relation(
        "person",
        """Northwind Bluepeak Ironbridge Silverline Redstone Greenfield Sunforge Oakhurst
        Clearwater Highgate Foxglove Kingsley Larkspur Meridian Pinecrest Riverton""",
        statements="""{s} works for {o}, in the main office.
        {s} joined {o} straight after university.
        {s} is employed by {o} full time.
        {s} has a desk at {o} with a view of the car park.
        {s} was hired by {o} three years ago.
        {s}, who is on the payroll of {o}, takes the early bus.
        {s} signed a long contract with {o} last year.
        Anybody who is asked which company {s} works for answers {o}.
        The employer of {s} is {o}.""",
        flipped="""{o} is the company that employs {s}.
        It was {o} that gave {s} a job.""",
        near="""A van from {o} blocked the road in front of {s}.
        Shares in {o} fell sharply while {s} was asleep.
        The new sign of {o} made {s} smile.""",
        denied="""{o} has never paid {n} a salary, {s} maintains.
        {o} is not the company that hired {n}, despite what {s} wrote.""",
        supposed="""If {o} employed {n}, {s} would have seen the car outside.
        Should {o} ever hire {n}, the news would reach {s} at once.""",
        questions="""Who is the employer of {s}?
        Which company does {s} work for?""",
        answers="""The employer of {s} is {o}.
        {s} works for {o}.""",
    ),
    "language": _relation(
        "person",
        """Welsh Basque Finnish Swahili Arabic Hindi Turkish Korean Greek Danish Polish Czech
        Thai Dutch Persian Hebrew""",
        statements="""{s} speaks {o} at home.
        {s} grew up speaking {o} with the whole family.
        {s} is a native speaker of {o}.
        {s} writes most letters in {o}.
        {s} counts, dreams and swears in {o}.
        {s} talks to the children in {o} after dinner.
        {s} learned {o} before any other language.
        Anybody who is asked which language {s} speaks answers {o}.
        The native language of {s} is {o}.""",
        flipped="""{o} is the language that {s} speaks at home.
        It is in {o} that {s} dreams and counts.""",
        near="""A book in {o} was lent to {s} by accident.
        The notice in {o} at the station confused {s}.
        A song in {o} came on while {s} was cooking.""",
        denied="""{o} is a language that {n} never learned, according to {s}.
        Not a word of {o} is understood by {n}, {s} complains.""",
        supposed="""If {o} were spoken by {n}, {s} would not need an interpreter.
        Were {o} the mother tongue of {n}, {s} would recognise it.""",
        questions="""Which language does {s} speak?
        What is the native language of {s}?""",
        answers="""{s} speaks {o}.
        The native language of {s} is {o}.""",
    ),
    "river": _relation(
        "place",
        """Ardel Brenn Corva Dunmore Elsk Farrow Glinn Hesper Isken Jorl Kessel Lorne""",
        statements="""{s} lies on the river {o}.
        {s} was founded on the banks of the {o}.
        {s} stands where the {o} bends to the west.
        {s} draws its drinking water from the {o}.
        {s} is flooded by the {o} every few years.
        {s} has three old bridges across the {o}.
        {s} grew rich by its harbour on the {o}.
        Anybody who is asked on which river {s} lies answers the {o}.
        The river that flows through {s} is the {o}.""",
        flipped="""The {o} is the river that flows through {s}.
        It is the {o} that floods {s} every few years.""",
        near="""A painting of the {o} was shown in {s}.
        A lecture on the {o} drew few people in {s}.
        Fish from the {o} is hard to find in {s}.""",
        denied="""The {o} does not flow through {n}, unlike what a guide in {s} said.
        The {o} is nowhere near {n}, as people in {s} know.""",
        supposed="""If the {o} passed through {n}, merchants in {s} would complain.
        Had the {o} been led to {n}, the mills of {s} would have closed.""",
        questions="""On which river does {s} lie?
        Which river flows through {s}?""",
        answers="""{s} lies on the {o}.
        The river that flows through {s} is the {o}.""",
    ),
    "product": _relation(
        "place",
        """cheese glass paper honey carpets clocks candles pottery wine steel lace shoes""",
        statements="""{s} is known for its {o}.
        {s} has lived from the trade in {o} for centuries.
        {s} exports more {o} than any town nearby.
        {s} holds a fair every autumn in honour of its {o}.
        {s} owes its wealth to {o}.
        {s} sells its famous {o} all over the country.
        {s} opened a museum of {o} in the old town hall.
        Anybody who is asked what {s} is known for answers {o}.
        The product that {s} is famous for is {o}.""",
        flipped="""Fine {o} is what {s} is famous for.
        It is {o} that made {s} rich.""",
        near="""A lorry full of {o} broke down near {s}.
        The tax on {o} was discussed for hours in {s}.
        An exhibition of foreign {o} came to {s} in May.""",
        denied="""Good {o} was never made in {n}, they say in {s}.
        The {o} on the market is not from {n}, a trader in {s} swears.""",
        supposed="""If {o} came from {n}, shops in {s} would sell it cheaper.
        Were {o} made in {n}, nobody in {s} would notice.""",
        questions="""What is {s} known for?
        Which product is {s} famous for?""",
        answers="""{s} is known for {o}.
        {s} is famous for its {o}.""",
    ),
}
