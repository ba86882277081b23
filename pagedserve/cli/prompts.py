# SPDX-License-Identifier: Apache-2.0
"""What the demo's users ask: one system prompt that all share, and 64 short questions and tasks, no two alike."""

SYSTEM_PROMPT = (
    "You are a friendly and careful assistant. Answer in plain English, in short sentences. "
    "Begin with the answer itself, then give one reason or one example for it. "
    "When a task asks for a list, number its items. When a task asks for code, write Python. "
    "Do not repeat the question, do not apologise, and say so when you do not know. "
    "Keep the whole answer below one hundred words, because many people are waiting for theirs."
)

# The one who comes first, alone.
FIRST_PROMPT = "Why is the sky blue, and why is it red in the evening?"

PROMPTS = (
    # Everyday science
    "What is the capital of France?",
    "Why do leaves change colour in autumn?",
    "How does a rainbow form?",
    "Why does ice float on water?",
    "What causes the tides of the sea?",
    "Explain in two sentences how vaccines work.",
    "Why do we see lightning before we hear thunder?",
    "What is the difference between weather and climate?",
    "How do plants turn sunlight into food?",
    "Why is the sea salty?",
    "What keeps a satellite from falling down?",
    "Name three planets of our solar system and say one thing about each.",
    # Computers
    "Explain in two sentences what a hash table is.",
    "What is the difference between a process and a thread?",
    "Write a Python function that returns the largest number of a list.",
    "Write a Python function that says whether a word is a palindrome.",
    "What does the command 'git rebase' do?",
    "Explain recursion to a child of ten.",
    "What is a database index, and when does it hurt?",
    "Why do computers count in binary?",
    "Name three ways to make a web page load faster.",
    "What happens, step by step, when I type an address into a browser?",
    "Explain what this line does: squares = [n * n for n in range(10) if n % 2 == 0]",
    "What is a cache, and why is it hard to keep it right?",
    # Numbers
    "What is 15 percent of 80?",
    "A train travels 120 kilometres in 90 minutes. How fast is it, in kilometres an hour?",
    "Explain what a prime number is and list the first five.",
    "What is the difference between the mean and the median?",
    "I have 3 apples and buy 2 bags of 4 apples. How many apples do I have?",
    "Explain the theorem of Pythagoras with one example.",
    # Writing
    "Write a short poem about the sea.",
    "Write a polite e-mail that moves a meeting from Monday to Wednesday.",
    "Write the first two sentences of a mystery that begins in a library.",
    "Suggest three names for a small bakery near a harbour.",
    "Write a haiku about the first snow.",
    "Write one sentence that thanks a colleague for help with a difficult project.",
    "Describe a thunderstorm without using the word rain.",
    "Write a birthday wish for a grandmother who loves her garden.",
    # Working on a text
    "Correct the grammar: 'She don't likes to swim when the water are cold.'",
    "Make this friendlier: 'Send me the report now.'",
    "Say this in simpler words: 'The committee elected to defer its deliberations until the ensuing session.'",
    "Sum this up in one sentence: 'The old bridge was closed in March after engineers had found cracks in two of its "
    "pillars. Repairs began in May and cost more than planned, because the river bed had moved. The bridge opened "
    "again in October, two weeks before the harvest festival, and the first to cross it was the school orchestra.'",
    "List the people and places in this sentence: 'Maria met her cousin Paul in Lisbon before they flew to Oslo.'",
    "Is this review happy or unhappy, and why? 'The room was small, but the view and the breakfast made up for it.'",
    "Give three synonyms for the word 'quick'.",
    "Translate into French: 'Good morning, where is the railway station?'",
    # Home and health
    "How do I boil an egg so that the yolk stays soft?",
    "Give me a simple recipe for tomato soup.",
    "How often should I water a cactus?",
    "Name three exercises for people who sit all day.",
    "How can I fall asleep more easily?",
    "How do I remove a coffee stain from a shirt?",
    "What should I pack for a weekend of hiking in the mountains?",
    "What is the best way to store bread?",
    # The world
    "Who wrote Romeo and Juliet, and what is it about?",
    "Why was the invention of the printing press important?",
    "Name three rivers of Europe and a city on each.",
    "What was the first journey to the Moon called?",
    "Explain the difference between a republic and a monarchy.",
    "What is inflation, in simple words?",
    "Why did people build castles on hills?",
    "Give two reasons for and two against working from home.",
    "What makes a good question in a job interview?",
    "Plan a day in Rome for a family with two children.",
)
