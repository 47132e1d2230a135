// Makes elements. Text is only ever set as text: what names and reasons hold is shown, never run.

const SVG = 'http://www.w3.org/2000/svg';

function made(node, attributes, children) {
  for (const [name, value] of Object.entries(attributes || {})) {
    if (name.startsWith('on')) node.addEventListener(name.slice(2), value);
    else if (value !== undefined && value !== null && value !== false) node.setAttribute(name, value === true ? '' : value);
  }
  node.append(...children.flat(Infinity).filter((child) => child !== undefined && child !== null && child !== false));
  return node;
}

export const element = (name, attributes, ...children) => made(document.createElement(name), attributes, children);
export const shape = (name, attributes, ...children) => made(document.createElementNS(SVG, name), attributes, children);
export const byId = (id) => document.getElementById(id);

// Replaces what is in a container; whoever has the focus there keeps it, by its data-key.
export function show(container, ...children) {
  const key = container.contains(document.activeElement) ? document.activeElement.dataset.key : undefined;
  container.replaceChildren(...children.flat(Infinity).filter(Boolean));
  if (key !== undefined) {
    [...container.querySelectorAll('[data-key]')].find((node) => node.dataset.key === key)?.focus({ preventScroll: true });
  }
}

// What stands for each kind of connection, and for good and bad: shapes, not only colours.
const GLYPHS = {
  encrypted: ['M4.6 7.4h6.8v5H4.6z', 'M5.8 7.2V5.6a2.2 2.2 0 0 1 4.4 0v1.6'],
  plaintext: ['M4.6 7.4h6.8v5H4.6z', 'M5.8 7.2V4.8a2.2 2.2 0 0 1 4.2-1'],
  denied: ['M4.8 4.8l6.4 6.4', 'M11.2 4.8l-6.4 6.4'],
  unavailable: ['M8 3.8v5', 'M8 11.8v.1'],
  good: ['M3.6 8.4l3 3 5.8-6.6'],
  bad: ['M8 2.6l6 10.4H2z', 'M8 6.6v3', 'M8 11.3v.1'],
};

export function glyph(kind, attributes) {
  return shape('g', { class: 'glyph', ...attributes }, GLYPHS[kind].map((path) => shape('path', { d: path })));
}

export function icon(kind) {
  return shape('svg', { class: 'icon', width: 16, height: 16, viewBox: '0 0 16 16', 'aria-hidden': 'true' }, glyph(kind));
}

export const well = (text) => element('span', { class: 'tag kind-encrypted' }, icon('good'), text);
export const tag = (kind, text) => element('span', { class: `tag kind-${kind}` }, icon(kind), text);

export function table(columns, rows, attributes) {
  const heads = columns.map(([title, kind]) => element('th', { scope: 'col', class: kind }, title));
  return element('div', { class: 'scroll' },
    element('table', attributes, element('thead', {}, element('tr', {}, heads)), rows));
}
