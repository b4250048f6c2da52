"""Every page of the explorer and a deep link into it, for the run that the browser tests serve."""

ROUTES: dict[str, str] = {
    "#/": "Triptych",
    "#/playground": "Playground · Triptych",
    "#/generations": "Generations · Triptych",
    "#/generations?category=factual&sort=n_tokens&order=desc&size=25": "Generations · Triptych",
    "#/generations?q=nothing+of+the+kind": "Generations · Triptych",
    "#/generations/5": "Generation 5 · Triptych",
    "#/generations/0": "Generation 0 · Triptych",
    "#/compare/4/5": "Comparison of 4 and 5 · Triptych",
    "#/compare/0/9": "Comparison of 0 and 9 · Triptych",
    "#/audits": "Audits · Triptych",
    "#/audits?model=dpo": "Audits · Triptych",
    "#/audits/finding/0": "Finding 0 · Triptych",
    "#/audits/finding/1": "Finding 1 · Triptych",
    "#/audits/responses": "Responses · Triptych",
    "#/audits/responses?model=dpo&kind=plain&sort=n_words&order=desc": "Responses · Triptych",
    "#/audits/response/12": "Response 12 · Triptych",
    "#/concepts": "Concepts · Triptych",
    "#/concepts?cls=specific&sort=entropy&order=desc": "Concepts · Triptych",
    "#/concepts?factor=shape&value=%3Cb%3Estar": "Concepts · Triptych",
    "#/concepts/1": "Latent 1 · Triptych",
    "#/concepts/29": "Latent 29 · Triptych",
}
"""Route → the title of its document."""
