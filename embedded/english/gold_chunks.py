"""Hand-marked descriptions of photographs: [brackets] hold the noun chunks (without pronouns) as spaCy's convention
has them.

`SEEN` was looked at while the grammar was written; `UNSEEN` was written before it
was first measured and only measured.
"""

from __future__ import annotations

SEEN = (
    "[A man] riding [a brown horse] down [a city street].",
    "[Two dogs] are playing with [a frisbee] in [the grass].",
    "[A woman] in [a red dress] is holding [an umbrella] while walking in [the rain].",
    "[The image] features [a large orange cat] sitting on [top] of [a wooden table].",
    "In [the background], there are [several people] standing near [a bus stop].",
    "[The cat] is looking directly at [the camera], and [its eyes] are wide open.",
    "[A plate] of [food] with [broccoli], [rice], and [chicken] on [a white table].",
    "[The dining table] is surrounded by [chairs], with [one] on [the left side] and another on [the right side].",
    "There is [a kitchen] with [a stove], [a refrigerator] and [a sink].",
    "[A group] of [young children] playing [soccer] on [a green field].",
    "[A bathroom] with [a toilet], [a sink] and [a large mirror] above it.",
    "[The dog's collar] is blue, and it has [a small silver bell].",
    "[A skateboarder] performs [a trick] on [a ramp] in [a skate park].",
    "[A man] who is wearing [a hat] is standing next to [a truck].",
    "[A zebra] and [two giraffes] graze in [an open field] near [some trees].",
    "[The train] is traveling along [the tracks], passing by [a station] filled with [passengers].",
    "[A laptop computer] sits on [a desk] beside [a cup] of [coffee].",
    "[The overall atmosphere] of [the scene] is lively and colorful.",
    "[A red stop sign] stands at [the corner] of [the intersection].",
    "[Several boats] are docked in [the harbor], and [the sky] above is cloudy.",
    "[A little girl] blows out [the candles] on [her birthday cake].",
    "[The photo] captures [a surfer] skillfully riding [a large wave] in [the ocean].",
    "[A bowl] filled with [ripe bananas], [apples], and [oranges].",
    "[The man] on [the left] is taller than [the woman] next to him.",
)

UNSEEN = (
    "[A young boy] in [a baseball uniform] is swinging [a bat] at [a ball].",
    "[The living room] contains [a comfortable couch], [two armchairs], and [a coffee table].",
    "[A large elephant] walking through [a dry field] with [its baby].",
    "[A person] wearing [a yellow jacket] is skiing down [a snowy hill].",
    "On [the table], there is [a vase] with [pink flowers] and [a stack] of [books].",
    "[A black and white dog] lies on [a bed] next to [a pillow].",
    "[Three women] sit on [a bench] and look at [their phones].",
    "[The airplane] is flying high in [the clear blue sky], leaving [a white trail] behind it.",
    "[A bicycle] is parked against [a brick wall] in [front] of [a small shop].",
    "[A chef] prepares [a pizza] with [cheese], [tomatoes] and [olives] in [a restaurant kitchen].",
    "[The tennis player] is about to hit [the ball] with [his racket].",
    "[A clock tower] rises above [the buildings] of [the old town].",
    "[A cat] that is sleeping on [a laptop keyboard].",
    "In [addition] to [the main subject], [a few birds] can be seen in [the distance].",
    "[A street sign] hangs from [a pole] under [a cloudy sky].",
    "[The boy's shirt] is green, while [the girl's skirt] is purple.",
    "[A herd] of [sheep] crosses [a narrow road] between [two hills].",
    "[Many colorful kites] are flying over [the crowded beach].",
    "[A fluffy teddy bear] is placed in [a wicker basket] near [the window].",
    "[The bride] and [groom] are cutting [their wedding cake].",
    "[A motorcycle] with [a leather seat] stands on [the side] of [the road].",
    "[People] of [all ages] enjoy [the sunny weather] at [the park].",
    "There are [two cups] on [the counter], one of which is filled with [milk].",
    "[A sheep dog] watches over [the flock] from [the top] of [a hill].",
)
