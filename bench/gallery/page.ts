/**
 * The gallery's page: one HTML file beside the clips, without scripts and without anything from
 * elsewhere.
 *
 * @module
 */

/** What the page shows of one mode. */
export interface Card {
  /** Name of the mode. */
  readonly title: string;
  /** Where it is described. */
  readonly source: string;
  /** What it does, in a sentence or two. */
  readonly about: string;
  /** The command line that makes it. */
  readonly command: string;
  /** Pictures and clips, relative to the page. */
  readonly files: readonly string[];
  /** Seconds that it took; absent if it was not made. */
  readonly seconds?: number;
  /** What shows that it works, where its weights are not built in. */
  readonly proof?: readonly string[];
}

const STYLE = `
:root { color-scheme: light dark; --line: color-mix(in srgb, currentColor 18%, transparent); }
body { margin: 2rem auto; max-width: 76rem; padding: 0 1rem; font: 16px/1.5 system-ui, sans-serif; }
h1 { margin-bottom: 0; }
main { display: grid; gap: 1.25rem; grid-template-columns: repeat(auto-fill, minmax(21rem, 1fr)); }
article { border: 1px solid var(--line); border-radius: .5rem; padding: 1rem; }
h2 { font-size: 1.1rem; margin: 0; }
small { opacity: .7; }
img { width: 100%; image-rendering: pixelated; border-radius: .25rem; margin-top: .5rem; }
pre { overflow-x: auto; padding: .5rem; border: 1px solid var(--line); border-radius: .25rem;
  font-size: .8rem; white-space: pre-wrap; }
ul { padding-left: 1.2rem; }
`;

const ENTITIES: Readonly<Record<string, string>> = {
  "&": "&amp;",
  "<": "&lt;",
  ">": "&gt;",
  '"': "&quot;",
};

const escape = (text: string): string => text.replace(/[&<>"]/g, (char) => ENTITIES[char]);

/**
 * The page.
 *
 * @param made What made the clips: adapter, runtime, version.
 */
export function galleryPage(cards: readonly Card[], made: string): string {
  const shown = cards.filter(({ files, proof }) => files.length > 0 && !proof);
  const proven = cards.filter(({ proof }) => proof);
  return `<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width">
<title>framezero: gallery</title>
<style>${STYLE}</style>
<h1>framezero</h1>
<p>One clip a mode, made by <code>npm run gallery</code> on ${escape(made)}.</p>
<h2>Made with the built-in model</h2>
<p>2.5 million parameters that know shapes, colours and six scenes: small, but every clip below is
the whole method.</p>
<main>
${shown.map(card).join("\n")}
</main>
<h2>Modes whose weights are not built in</h2>
<p>There is no ControlNet and no instruction-following UNet small enough to come along. What shows
that these modes are right is written beside them: comparison with the original code's own results
(<code>bench/parity.ts</code>), and tests with tiny models. Their commands need the weights that
they name.</p>
<main>
${proven.map(card).join("\n")}
</main>
</html>
`;
}

function card({ title, source, about, command, files, seconds, proof }: Card): string {
  const images = files.map((file) => `<img src="${escape(file)}" alt="${escape(title)}">`);
  const facts = (proof ?? []).map((fact) => `<li>${escape(fact)}</li>`);
  const took = seconds === undefined ? "" : `<small>made in ${seconds.toFixed(1)} s</small>`;
  return `<article>
<h2>${escape(title)}</h2>
<small>${escape(source)}</small>
<p>${escape(about)}</p>
${images.join("\n")}
<pre>${escape(command)}</pre>
${facts.length ? `<ul>${facts.join("")}</ul>` : ""}${took}
</article>`;
}
