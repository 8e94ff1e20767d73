"""The words of a report in a sentence each, for who did not choose them."""

GLOSSARY: tuple[tuple[str, str], ...] = (
    ("adapter", "The small set of weights that was trained beside the frozen base model; the base is unchanged."),
    ("rank (r)", "How many directions the adapter may add to each layer: twice the rank, twice the weights."),
    ("alpha", "The adapter's strength: what it adds is multiplied by alpha / r."),
    ("learning rate", "How far each step moves the weights. Too small learns little, too large diverges."),
    ("batch size", "Rows that are read before the weights move once."),
    ("epoch", "One reading of all training rows."),
    ("validation and test rows", "Rows that were never trained on. The search chose by the validation rows; the test "
     "rows were scored once, when all was chosen."),
    ("NLL, nats per token", "How surprised the model is by the right text, on average for each token: 0 is certain, "
     "0.7 is a coin's toss. Lower is better."),
    ("macro-F1", "Accuracy that counts every class alike, however rare."),
    ("exact match", "Share of the rows whose text would be given word for word."),
    ("default recipe", "What one would take unasked (rank 16, learning rate 2e-4), trained beside the answer."),
    ("margin", "The loss of quality that counts as none. A smaller rank within it is taken for its lower cost."),
    ("non-inferior, adequate", "Shown to lie within the margin of the largest rank, with 95 % confidence."),
    ("95 % interval", "Where the true value lies in 95 of 100 such measurements. If it holds 0, the difference may "
     "be chance."),
    ("seed", "The draw of first weights and order of rows. Two seeds differ by chance alone."),
    ("trial, pack", "One set of hyper-parameters trained once; trials that were trained beside each other, each as if "
     "alone."),
    ("full run", "The cost of training the default recipe once on all rows: the unit of the budget."),
    ("diverged", "The loss grew without end; such a learning rate is too large."),
)  # fmt: skip
"""(word, what it means), in the order in which a reader meets them."""
