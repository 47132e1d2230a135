// Asks the server for the mesh, again and again, and shows it.

import { byId, element, icon, show } from './dom.js';
import { KINDS, count, health, span } from './model.js';
import * as graph from './graph.js';
import * as tables from './tables.js';
import { ask, policy } from './policy.js';

const VIEWS = ['graph', 'services', 'hosts', 'flows', 'policy', 'certificates'];
const FIRST_PAUSE = 500;
const LAST_PAUSE = 5000;

// How often it is shown anew how long ago things were.
const CLOCK = 5000;

let state = null;
let told = 0;
let came = 0;
// How wide the graph was.
let drawn = 0;
const kinds = new Set(Object.keys(KINDS));

const view = () => (VIEWS.includes(location.hash.slice(1)) ? location.hash.slice(1) : 'graph');
const options = () => ({
  search: byId('search').value.trim(),
  kinds,
  grouping: byId('grouping').value,
  namedOnly: byId('named-only').checked,
});

function render() {
  const current = view();
  VIEWS.forEach((name) => { byId(`view-${name}`).hidden = name !== current; });
  document.querySelectorAll('nav a').forEach((link) => {
    if (link.hash === `#${current}`) link.setAttribute('aria-current', 'page');
    else link.removeAttribute('aria-current');
  });
  if (!state) return;
  summary();
  const chosen = options();
  if (current === 'graph') graph.draw(state, chosen);
  else if (current === 'services') tables.services(state, { ...chosen, grouping: byId('service-grouping').value }, render);
  else if (current === 'policy') policy(state, chosen);
  else tables[current](state, chosen, render);
  document.body.dataset.drawn = current;
}

function summary() {
  byId('mesh-name').textContent = state.trust_domain;
  document.title = `Murmesh: ${state.trust_domain}`;
  byId('source').textContent = `Server ${state.server}, version ${state.server_version}, revision ${state.revision}`;
  const connected = state.hosts.filter((host) => host.connected).length;
  const ill = state.services.filter((service) => health(service).rank < 2);
  const flows = (kind) => state.flows.filter((flow) => flow.kind === kind).length;
  const ends = [state.certificates.server_ends, ...state.hosts.map((host) => host.certificate_ends).filter(Boolean)];
  const left = Math.min(...ends) - state.now;
  const outage = state.reaches_store ? '' : 'the server does not reach its database';
  show(byId('summary'),
    card('hosts', connected === state.hosts.length ? 'encrypted' : 'denied', connected === state.hosts.length ? 'good' : 'bad', 'Hosts connected', `${connected} of ${state.hosts.length}`, outage || `${count(state.servers.filter((server) => server.connected).length, 'server')}`),
    card('services', ill.length ? 'denied' : 'encrypted', ill.length ? 'bad' : 'good', 'Services healthy', `${state.services.length - ill.length} of ${state.services.length}`, ill.length ? ill.slice(0, 3).map((service) => service.id).join(', ') : `${state.services.filter((service) => service.named).length} with a name`),
    card('flows', 'encrypted', 'encrypted', 'Encrypted', flows('encrypted'), 'flows through the mesh'),
    card('flows', flows('plaintext') ? 'plaintext' : '', 'plaintext', 'In clear', flows('plaintext'), 'in the last hour'),
    card('flows', flows('denied') ? 'denied' : '', 'denied', 'Denied', flows('denied'), 'by rules or strict services'),
    card('certificates', left > 300 ? 'encrypted' : 'denied', left > 300 ? 'good' : 'bad', 'Certificates', left > 0 ? span(left) : 'ended', 'until the first would end'));
}

function card(target, tone, sign, name, figure, about) {
  return element('a', { class: `card tone-${tone}`, href: `#${target}`, 'data-key': `card-${name}` },
    element('span', { class: `name kind-${tone || 'none'}` }, icon(sign), name), element('strong', {}, String(figure)), element('small', {}, about));
}

function live(kind, words) {
  byId('live').dataset.state = kind;
  byId('live').textContent = words;
}

const pause = (milliseconds) => new Promise((resolve) => { setTimeout(resolve, milliseconds); });
const visible = () => (document.hidden ? new Promise((resolve) => { document.addEventListener('visibilitychange', resolve, { once: true }); }) : null);

async function follow() {
  let wait = FIRST_PAUSE;
  for (;;) {
    await visible();
    try {
      const answer = await fetch(`/api/mesh?after=${encodeURIComponent(state?.version ?? '')}`);
      if (answer.status === 401) { live('lost', 'closed: run murmesh ui'); return; }
      if (answer.status === 200) {
        state = await answer.json();
        [told, came] = [state.now, performance.now()];
        tables.measure(state);
        render();
      } else if (answer.status !== 204) throw new Error(String(answer.status));
      live('live', 'live');
      wait = FIRST_PAUSE;
    } catch {
      live('lost', 'no answer, trying again');
      wait = Math.min(wait * 2, LAST_PAUSE);
    }
    await pause(wait);
  }
}

function choices() {
  const samples = Object.entries(KINDS).map(([kind, words]) => {
    const change = (event) => { if (event.target.checked) kinds.add(kind); else kinds.delete(kind); render(); };
    return element('label', {}, element('input', { type: 'checkbox', checked: true, onchange: change }), line(kind), words);
  });
  byId('kinds').append(...samples);
}

function line(kind) {
  const sample = icon(kind);
  sample.setAttribute('width', 44);
  sample.setAttribute('viewBox', '0 0 44 16');
  const path = document.createElementNS('http://www.w3.org/2000/svg', 'path');
  path.setAttribute('d', 'M18 8h25');
  path.setAttribute('class', `sample kind-${kind}`);
  sample.append(path);
  sample.classList.add(`kind-${kind}`);
  return sample;
}

function keys(event) {
  const writes = event.target.matches?.('input:not([type=checkbox]), select, textarea');
  if (event.key === 'Escape' && event.target === byId('search')) { byId('search').value = ''; byId('main').focus(); render(); return; }
  if (writes || event.ctrlKey || event.altKey || event.metaKey) return;
  const number = Number(event.key) - 1;
  if (event.key === '/') byId('search').focus();
  else if (VIEWS[number]) location.hash = VIEWS[number];
  else if (view() === 'graph' && (event.key === 'ArrowRight' || event.key === 'ArrowDown')) graph.step(1);
  else if (view() === 'graph' && (event.key === 'ArrowLeft' || event.key === 'ArrowUp')) graph.step(-1);
  else return;
  event.preventDefault();
}

byId('search').addEventListener('input', render);
['grouping', 'service-grouping', 'named-only'].forEach((id) => byId(id).addEventListener('change', render));
byId('reach').addEventListener('submit', (event) => {
  event.preventDefault();
  if (state) ask(state, byId('reach-from').value, byId('reach-to').value);
});
document.addEventListener('keydown', keys);
window.addEventListener('hashchange', render);
new ResizeObserver(([graph]) => {
  if (graph.contentRect.width && graph.contentRect.width !== drawn) render();
  drawn = graph.contentRect.width;
}).observe(byId('graph'));
setInterval(() => {
  if (!state || document.hidden) return;
  state.now = told + Math.floor((performance.now() - came) / 1000);
  render();
}, CLOCK);
choices();
render();
follow();
