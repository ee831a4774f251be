// The OpenID provider of the end-to-end tests: npm's oidc-provider, with its own login and consent
// pages. Whoever gives a login and any password is that account, in the groups of GROUPS.
//
// node provider.mjs NODE_MODULES_PARENT PORT CERT KEY CLIENTS_JSON

import { createPrivateKey, generateKeyPairSync, randomBytes } from 'node:crypto';
import { readFileSync } from 'node:fs';
import { createServer } from 'node:https';
import { createRequire } from 'node:module';
import { join } from 'node:path';
import { pathToFileURL } from 'node:url';

const [parent, port, cert, key, clients] = process.argv.slice(2);
const found = createRequire(join(parent, 'anchor.js')).resolve('oidc-provider');
const { Provider } = await import(pathToFileURL(found));

const GROUPS = { ana: ['ops', 'people'], bob: ['people'] };

// By way of PEM: node 20 waits for itself for ever where the collector meets a key that was just
// made in the midst of its export.
const jwk = (kind, options, kid, alg) => {
  const privateKeyEncoding = { type: 'pkcs8', format: 'pem' };
  const { privateKey } = generateKeyPairSync(kind, { ...options, privateKeyEncoding });
  return { ...createPrivateKey(privateKey).export({ format: 'jwk' }), kid, alg, use: 'sig' };
};

const issuer = `https://127.0.0.1:${port}`;
const provider = new Provider(issuer, {
  clients: JSON.parse(clients),
  jwks: {
    keys: [
      jwk('rsa', { modulusLength: 2048 }, 'rs', 'RS256'),
      jwk('rsa', { modulusLength: 2048 }, 'ps', 'PS256'),
      jwk('ec', { namedCurve: 'P-256' }, 'es', 'ES256'),
      jwk('ed25519', {}, 'ed', 'EdDSA'),
    ],
  },
  enabledJWA: { idTokenSigningAlgValues: ['RS256', 'PS256', 'ES256', 'EdDSA', 'HS256'] },
  claims: { openid: ['sub'], email: ['email', 'email_verified'], groups: ['groups'] },
  scopes: ['openid', 'email', 'groups'],
  pkce: { required: () => true },
  cookies: { keys: [randomBytes(32).toString('hex')] },
  ttl: { Session: 600, Grant: 600, Interaction: 600, AccessToken: 600, IdToken: 600 },
  findAccount: (_, id) => ({
    accountId: id,
    claims: () => ({
      sub: id, email: `${id}@example.test`, email_verified: true, groups: GROUPS[id] ?? [],
    }),
  }),
});
for (const event of ['grant.error', 'authorization.error', 'userinfo.error', 'server_error']) {
  provider.on(event, (_, error) => console.log(event, error.message, error.error_detail ?? ''));
}
createServer({ cert: readFileSync(cert), key: readFileSync(key) }, provider.callback())
  .listen(Number(port), '127.0.0.1', () => console.log('provider serves', issuer));
